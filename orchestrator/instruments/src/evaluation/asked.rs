//! What is asked of a run, and opening what it takes.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::bail;
use clap::Args;
use lacuna_model::weights::{Checkpoint, Library};
use tokio::runtime::Handle;

use super::arm::ArmSetting;
use super::experiments::Experiment;
use super::making::Maker;
use super::prompts::{self, Prompts};
use super::record::Record;
use super::run::Run;
use super::shard::Shard;
use super::store::Store;
use crate::error::{Error, Result};
use crate::metrics::folder::Folder;
use crate::metrics::metric::Metric;
use crate::metrics::networks::{Given, MetricArguments, Wanted};
use lacuna_orchestrator::arguments::fleet::FleetArguments;
use lacuna_orchestrator::arguments::model::{ModelArguments, check_model, load};
use lacuna_orchestrator::arguments::sampling::SamplingArguments;
use lacuna_orchestrator::arguments::size::PictureSize;
use lacuna_orchestrator::arguments::terms::TermsArguments;
use lacuna_orchestrator::family::Family;
use lacuna_orchestrator::generator::order::load_whole;
use lacuna_orchestrator::limits;
use lacuna_orchestrator::output::console::note;
use lacuna_orchestrator::pipeline::Pipeline;

/// Arguments of a run.
#[derive(Args, Clone, Debug)]
pub struct RunArguments {
    /// Prompts: lines of text, a .csv file with a column of captions, or COCO's captions as .json
    /// [default of an experiment: configs/prompts/demo.txt].
    #[arg(long)]
    prompts: Option<PathBuf>,
    /// The column of a .csv file.
    #[arg(long, default_value = "caption")]
    caption_column: String,
    /// Take only so many prompts, from the first.
    #[arg(long)]
    limit: Option<usize>,
    /// What to compare: schemes with options of generate, or workers, steps and size:
    /// ppidm,resident,resident:wire=f16;workers=2
    #[arg(long, conflicts_with = "experiment")]
    schemes: Option<String>,
    /// What to compare: what one of the paper's tables does.
    #[arg(long)]
    experiment: Option<Experiment>,
    #[command(flatten)]
    model: ModelArguments,
    #[command(flatten)]
    sampling: SamplingArguments,
    #[command(flatten)]
    size: PictureSize,
    #[command(flatten)]
    workers: FleetArguments,
    #[command(flatten)]
    terms: TermsArguments,
    /// A folder of pictures to compare with, named as this command names its own (INDEX-SEED.png), in
    /// place of the uncut model's.
    #[arg(long)]
    reference: Option<PathBuf>,
    /// A folder of real pictures of any names that FID and KID compare with.
    #[arg(long)]
    fid_reference: Option<PathBuf>,
    #[command(flatten)]
    metrics: MetricArguments,
    /// So many pictures at a time: where the way to the workers is long, one computes while another waits.
    #[arg(long, value_name = "N", default_value_t = 1)]
    parallel: usize,
    /// i/n: make only the i-th of n parts of the prompts, from 0; `lacuna eval merge` joins them.
    #[arg(long, default_value_t)]
    shard: Shard,
    /// The directory of the run. A run that was ended goes on there.
    #[arg(short, long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Leave prompt and seed out of the pictures' files, which have them as text. The results name them.
    #[arg(long)]
    no_metadata: bool,
}

/// The first seed where none is given: a run that goes on must know it.
const SEED: u64 = 42;

/// Prompts of an experiment, where none are given: lines of text.
const DEMO_PROMPTS: &[u8] = include_bytes!("../../../../configs/prompts/demo.txt");

impl RunArguments {
    /// Opens everything that the run needs, and finds out before hours of work what it cannot be. Gives the run
    /// and its directory.
    ///
    /// # Errors
    /// What is off in the arguments and files, by name.
    pub async fn prepare(mut self) -> anyhow::Result<(Run, PathBuf)> {
        let Some(out) = self.out.clone() else {
            bail!("--out is missing: the directory of the run");
        };
        check_model(&self.model)?;
        self.sampling.check()?;
        self.workers.check()?;
        limits::check("--parallel", self.parallel, limits::AT_A_TIME)?;
        let prompts = self.prompts()?;
        for (flag, dir) in [
            ("--reference", &self.reference),
            ("--fid-reference", &self.fid_reference),
        ] {
            if let Some(dir) = dir.as_ref().filter(|dir| !dir.is_dir()) {
                bail!("{flag} {}: there is no such folder", dir.display());
            }
        }
        // What needs no model is looked at before one is read.
        let way = self.terms.way;
        let fleet = self.workers.file().map(|path| way.fleet(path));
        let fleet = fleet.transpose()?;
        let policy = self.terms.policy(fleet.as_ref())?;
        if self.experiment.is_none() {
            self.arms(Family::StableDiffusion, [0, 0])?;
        }
        let (pipeline, device) = load(&self.model).await?;
        let size = self.size_of(&pipeline)?;
        let mut arms = self.arms(pipeline.family(), size)?;
        let sampling = self.sampling.settle(&pipeline, 0.0);
        pipeline.check_sampling(&sampling)?;
        pipeline.check_prompts(&self.sampling.words.options())?;
        let open = || Ok(device.device.clone());
        let mut maker = Maker {
            whole: None,
            fleet,
            policy,
            local_workers: self.workers.number(),
            sampling,
            size,
            metadata: !self.no_metadata,
            options: self.sampling.words.options(),
            runtime: Handle::current(),
            pipeline,
            device: device.clone(),
        };
        arms.iter_mut().try_for_each(|arm| maker.settle(arm))?;
        let mut left_out = Vec::new();
        // A model may bring a network for its own pictures.
        let beside = self.model.model.join("features.safetensors");
        if self.metrics.demo_features.is_none() && beside.is_file() {
            self.metrics.demo_features = Some(beside);
        }
        let leave_out = |metric: Metric, hint: String| left_out.push(format!("{metric}: {hint}"));
        let wanted = self.metrics.load(Given::PromptedSets, open, leave_out)?;
        left_out
            .iter()
            .for_each(|hint| note(format_args!("left out: {hint}")));
        let record = self.record(&maker, &prompts, &arms, &wanted)?;
        let store = Store::resume(&out, record)?;
        let remote = maker.fleet.is_some() && arms.iter().all(|arm| arm.scheme.needs_workers());
        if !remote || self.reference.is_none() {
            maker.whole = Some(load_whole(maker.pipeline.source()).await?);
        }
        let run = Run {
            maker,
            arms,
            prompts,
            wanted,
            store,
            parallel: self.parallel,
        };
        Ok((run, out))
    }

    fn prompts(&self) -> Result<Prompts> {
        let mut prompts = match (&self.prompts, self.experiment) {
            (Some(path), _) => prompts::read(path, &self.caption_column)?,
            (None, Some(_)) => prompts::of_lines(DEMO_PROMPTS),
            (None, None) => {
                let reason = "--prompts is missing: a file of prompts";
                return Err(Error::Request(reason.into()));
            }
        };
        prompts.truncate(self.limit.unwrap_or(prompts.len()));
        if prompts.is_empty() {
            return Err(Error::Request("--limit 0: at least one prompt".into()));
        }
        Ok(prompts)
    }

    fn arms(&self, family: Family, size: [usize; 2]) -> Result<Vec<ArmSetting>> {
        match (&self.schemes, self.experiment) {
            (_, Some(experiment)) => experiment.arms(family, size),
            (Some(list), None) => ArmSetting::parse_list(list),
            (None, None) => Err(Error::Request(
                "--schemes is missing: what to compare, such as ppidm,resident; or --experiment"
                    .into(),
            )),
        }
    }

    fn size_of(&self, pipeline: &Pipeline) -> Result<[usize; 2]> {
        let [width, height] = self.size.sides();
        let [_, _, rows, columns] = pipeline.latent_shape(width, height)?;
        let pixels = pipeline.pixels_per_latent();
        Ok([columns * pixels, rows * pixels])
    }

    fn record(
        &self,
        maker: &Maker,
        prompts: &Prompts,
        arms: &[ArmSetting],
        wanted: &Wanted,
    ) -> Result<Record> {
        // As it is: the run finds its pictures by it when it goes on.
        let path = |flag: &str, path: &Option<PathBuf>| match path.as_ref().map(|p| (p, p.to_str()))
        {
            Some((path, None)) => Err(Error::Request(format!(
                "{flag} {}: its name must be UTF-8, run.json keeps it",
                path.display()
            ))),
            kept => Ok(kept.and_then(|(_, text)| text.map(str::to_owned))),
        };
        let given = self.reference.is_some();
        let metrics = wanted.metrics.iter().map(|metric| {
            let weights = self.metrics.weights_of(*metric);
            Ok((
                *metric,
                weights.as_deref().map_or(Ok(String::new()), digest_of)?,
            ))
        });
        Ok(Record {
            experiment: self.experiment.map(|experiment| experiment.to_string()),
            model: maker.pipeline.digest().to_owned(),
            added: [maker.pipeline.adapters(), maker.pipeline.embeddings()].concat(),
            model_name: self.model.model.display().to_string(),
            prompts: prompts.len(),
            prompts_digest: digest(prompts),
            seed: self.sampling.seed.unwrap_or(SEED),
            steps: self.sampling.steps,
            guidance: maker.sampling.guidance,
            options: self.sampling.words.options(),
            scheduler: maker.sampling.scheduler_in_words(),
            size: maker.size,
            arms: arms.iter().map(|arm| arm.record(given)).collect(),
            reference: path("--reference", &self.reference)?,
            given: digest_of_given(&[&self.reference, &self.fid_reference])?,
            fid_reference: path("--fid-reference", &self.fid_reference)?,
            metrics: metrics.collect::<Result<BTreeMap<_, _>>>()?,
            lpips_net: wanted.lpips.as_ref().map(|_| self.metrics.lpips_net),
            fid_resize: wanted.inception.as_ref().map(|_| self.metrics.fid_resize),
            kid: wanted.has(Metric::Kid).then(|| self.metrics.subsets()),
            shard: self.shard,
        })
    }
}

fn digest(prompts: &Prompts) -> String {
    let mut hasher = blake3::Hasher::new();
    for prompt in prompts {
        let text = prompt.as_deref().unwrap_or_default();
        hasher.update(&(text.len() as u64).to_le_bytes());
        hasher.update(text.as_bytes());
    }
    hasher.finalize().to_hex().to_string()
}

/// Of the names and sizes of the pictures in folders; none of no folder.
fn digest_of_given(folders: &[&Option<PathBuf>]) -> Result<Option<String>> {
    if folders.iter().all(|folder| folder.is_none()) {
        return Ok(None);
    }
    let mut hasher = blake3::Hasher::new();
    for folder in folders {
        let Some(folder) = folder else {
            hasher.update(b"none");
            continue;
        };
        for path in Folder::list(folder)?.paths() {
            let size = std::fs::metadata(&path).map_or(0, |metadata| metadata.len());
            hasher.update(path.file_name().unwrap_or_default().as_encoded_bytes());
            hasher.update(&size.to_le_bytes());
        }
    }
    Ok(Some(hasher.finalize().to_hex().to_string()))
}

/// Of a file, or of the weights in a directory.
fn digest_of(path: &Path) -> Result<String> {
    if path.is_dir() {
        return Ok(Checkpoint::open(path, Library::Transformers, None)?
            .digest()?
            .to_owned());
    }
    Ok(Checkpoint::open_file(path)?.digest()?.to_owned())
}
