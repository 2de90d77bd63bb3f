//! All attacks on one model: its pictures, what is attacked, and what is found.

use std::ops::Range;
use std::sync::Arc;

use lacuna_model::weights::Weights;
use lacuna_worker::Model;

use super::attacks::Material;
use super::corpus::{self, Run, Size};
use super::outcome::{Outcome, Recovered, attack, baselines, mean_picture};
use super::painter::Painter;
use super::sheet::{Cell, Column};
use super::table::Finding;
use super::target::Target;
use super::view::View;
use crate::error::Result;
use lacuna_model::survey::PROMPT_TOKENS;
use lacuna_orchestrator::cost::time::Speeds;
use lacuna_orchestrator::fleet::config::FleetConfig;
use lacuna_orchestrator::output::console::Console;
use lacuna_orchestrator::picture::Picture;
use lacuna_orchestrator::pipeline::{Pipeline, Sampling};
use lacuna_orchestrator::policy::plan::choose;
use lacuna_orchestrator::policy::{Policy, Views};
use lacuna_orchestrator::progress::Progress;
use lacuna_orchestrator::schemes::Options;
use lacuna_orchestrator::schemes::Setting;
use lacuna_orchestrator::schemes::blind::Blind;
use lacuna_orchestrator::schemes::ppidm::Ppidm;
use lacuna_orchestrator::schemes::resident::Resident;

/// What is attacked: a name, and how the U-Net is placed; none where the policy refuses.
pub type Case = (String, Option<Setting>);

/// The model, its pictures and how many of them are whose.
pub struct Trial {
    /// The model.
    pub pipeline: Pipeline,
    /// The U-Net's weights.
    pub weights: Weights,
    /// The U-Net, as workers hold it.
    pub model: Arc<Model>,
    /// How the sampler goes.
    pub sampling: Sampling,
    /// Sizes; the placement is the policies' to choose.
    pub base: Setting,
    /// How many pictures.
    pub size: Size,
    /// Held-out pictures on the sheet.
    pub shown: usize,
}

impl Trial {
    /// A trial of the model in `pipeline`, in so many steps.
    ///
    /// # Errors
    /// Those of the weights.
    pub fn new(pipeline: Pipeline, steps: usize, size: Size, shown: usize) -> Result<Self> {
        let weights = pipeline.source().load_all()?;
        let sampling = pipeline.sampling(steps, None);
        let [_, _, rows, columns] = pipeline.latent_shape(None, None)?;
        let strips = Resident {
            // Both halves of a guided step travel in one message: the worker sees the same of them.
            lanes: Some(false),
            ..Resident::default()
        };
        let latents = [sampling.batch(), rows, columns];
        let base = Setting::new(strips.scheme(), pipeline.unet(), latents, PROMPT_TOKENS);
        let model = Model::new(pipeline.unet().clone(), weights.clone(), pipeline.digest());
        Ok(Self {
            model: Arc::new(model),
            pipeline,
            weights,
            sampling,
            base,
            size,
            shown,
        })
    }

    /// Makes the pictures.
    ///
    /// # Errors
    /// Those of the model.
    pub fn runs(&self) -> Result<Vec<Run>> {
        let pictures = self.size.train + self.size.held_out;
        let bar = Progress::new("picture", pictures);
        let Self {
            pipeline,
            weights,
            sampling,
            base,
            ..
        } = self;
        corpus::make(pipeline, weights, sampling, base, self.size, |i| {
            bar.reach(i, pictures);
        })
    }

    /// The cases: of each policy the fastest that it allows on `fleet`, and the paper's scheme where that is asked
    /// for.
    ///
    /// # Errors
    /// Those of planning; a policy that allows nothing is a case without a setting.
    pub fn cases(
        &self,
        policies: &[Policy],
        ppidm: bool,
        fleet: &FleetConfig,
        speeds: &Speeds,
        console: &Console,
    ) -> Result<Vec<Case>> {
        let case = |policy: &Policy| {
            let name = policy.file.file_stem().unwrap_or_default();
            let name = name.to_string_lossy().into_owned();
            // Of a policy under which providers see nothing no strips are allowed.
            let base = match policy.views {
                Views::Nothing => self.base.by(usual_shares().scheme()),
                Views::Bounded => self.base.clone(),
            };
            match choose(self.pipeline.unet(), policy, &base, fleet, speeds) {
                Ok(plan) => {
                    let placement = plan.setting.scheme.placement();
                    console.line(format_args!("{name}: {placement}"));
                    Ok((name, Some(plan.setting)))
                }
                Err(error @ lacuna_orchestrator::Error::Policy { .. }) => {
                    console.line(format_args!("{name}: {error}"));
                    Ok((name, None))
                }
                Err(error) => Err(error.into()),
            }
        };
        let mut cases = policies.iter().map(case).collect::<Result<Vec<Case>>>()?;
        if ppidm {
            let paper = self.base.by(Ppidm::default().scheme());
            cases.push(("ppidm".to_owned(), Some(paper)));
        }
        Ok(cases)
    }

    /// Rows of the picture that rows of the latents become.
    fn pixels(&self, rows: Range<usize>) -> Range<usize> {
        let pixels = self.pipeline.pixels_per_latent();
        rows.start * pixels..rows.end * pixels
    }

    fn material<'a>(
        &'a self,
        runs: &'a [Run],
        views: &'a [Vec<View>],
        rows: Range<usize>,
    ) -> Material<'a> {
        Material {
            pipeline: &self.pipeline,
            runs,
            views,
            train: self.size.train,
            rows,
        }
    }

    /// All `cases` with one fleet: what was found, and the columns of the sheet.
    ///
    /// # Errors
    /// Those of the workers and of the attacks.
    pub fn attack(
        &self,
        cases: Vec<Case>,
        target: &Target<'_>,
        runs: &[Run],
    ) -> Result<(Vec<Finding>, Vec<Column>)> {
        let workers = target.fleet.workers.len();
        let mut findings = Vec::new();
        let mut known: Vec<Range<usize>> = Vec::new();
        let painter = Painter::new(&self.pipeline, &self.weights, &self.sampling, &self.base);
        let mut outcomes = Vec::new();
        // Where anybody computes rows at all.
        let mut own = 0..0;
        for (name, setting) in cases {
            let Some(setting) = setting else {
                continue;
            };
            let hides = setting
                .scheme
                .hidden_from(&setting.sizes, workers)?
                .is_some();
            if !hides {
                own = self.pixels(target.rows(&self.base)?);
            }
            for (name, target) in target.attackers(&name, &setting)? {
                let bar = Progress::new("picture", runs.len());
                bar.about(name.clone());
                let views = target.watch(&setting, &self.weights, runs, self.size.train, || {
                    bar.step();
                });
                drop(bar);
                let views = views?;
                let rows = target.rows(&setting)?;
                let material = self.material(runs, &views, rows.clone());
                if !known.contains(&rows) {
                    findings.append(&mut baselines(&material, workers)?);
                    known.push(rows.clone());
                }
                let mut outcome = attack(&name, workers, &material, &painter)?;
                findings.append(&mut outcome.findings);
                let outlined = if hides { 0..0 } else { self.pixels(rows) };
                outcomes.push((name, outcome, outlined));
            }
        }
        let held = runs.iter().skip(self.size.train).take(self.shown);
        let held: Vec<&Run> = held.collect();
        let mean = mean_picture(&self.material(runs, &[], 0..0))?;
        Ok((findings, columns(&held, &outcomes, own, &mean, workers)))
    }
}

/// The columns of the sheet: what is true, what is held, what each case gives away, and the mean. The rows that the
/// provider computes are outlined, `own` in the true picture; none of whoever computes words.
fn columns(
    held: &[&Run],
    outcomes: &[(String, Outcome, Range<usize>)],
    own: Range<usize>,
    mean: &Picture,
    workers: usize,
) -> Vec<Column> {
    let column = |heading: [&str; 2], cells: Vec<Cell>| Column {
        heading: heading.map(str::to_owned),
        cells,
    };
    let truth = held.iter().map(|run| Cell {
        picture: run.picture.clone(),
        caption: caption(&run.prompt.answers),
        outline: own.clone(),
    });
    let mut columns = vec![column(["true picture", "its prompt"], truth.collect())];
    let known = outcomes.iter().find_map(|(_, outcome, _)| {
        let rows = outcome.recovered.iter().take(held.len());
        rows.map(|r| r.held.clone()).collect::<Option<Vec<_>>>()
    });
    if let Some(known) = known.filter(|_| !own.is_empty()) {
        let cells = known.into_iter().map(|picture| Cell {
            picture,
            caption: String::new(),
            outline: 0..0,
        });
        let heading = format!("1 of {workers} providers");
        columns.push(column(["it computes", &heading], cells.collect()));
    }
    for (name, outcome, rows) in outcomes {
        let recovered = outcome.recovered.iter().take(held.len());
        let cells = recovered.map(|Recovered { guess, answers, .. }| Cell {
            picture: guess.clone(),
            caption: caption(answers),
            outline: rows.clone(),
        });
        columns.push(column([name, "it recovers"], cells.collect()));
        let painted = outcome.recovered.iter().take(held.len());
        let painted = painted.map(|recovered| recovered.painted.as_ref());
        if let Some(painted) = painted.collect::<Option<Vec<_>>>() {
            let cells = painted.into_iter().map(|(picture, answers)| Cell {
                picture: picture.clone(),
                caption: caption(answers),
                outline: rows.clone(),
            });
            columns.push(column([name, "with a prior"], cells.collect()));
        }
    }
    let cells = held.iter().map(|_| Cell {
        picture: mean.clone(),
        caption: String::new(),
        outline: 0..0,
    });
    columns.push(column(["mean picture", "no attack"], cells.collect()));
    columns
}

/// The shape that a prompt names first, and the background.
fn caption(answers: &[&str]) -> String {
    match answers {
        [_, colour, kind, .., background] => format!("{colour} {kind}-{background}"),
        _ => String::new(),
    }
}

/// Shares as they are where nobody chose: a plan for this small model would send next to nothing, and there would be little
/// to attack.
fn usual_shares() -> Blind {
    let usual = Blind::default();
    Blind {
        share_layers: Some(usual.layers()),
        share_carries: Some(usual.carries()),
        ..usual
    }
}
