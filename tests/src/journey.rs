//! `lacuna generate` from its command line to its files, in this process.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use lacuna::cli::Cli;
use lacuna_orchestrator::pipeline::{read_latents, write_latents};
use lacuna_wire::HostTensor;
use safetensors::SafeTensors;
use serde_json::Value;

use crate::golden::{Golden, has_golden, model_dir, repository};
use crate::reference::psnr;

/// Runs `lacuna` with arguments, as its binary does.
///
/// # Errors
/// What the binary would print behind `error: `.
pub async fn lacuna<A: Into<OsString>>(
    arguments: impl IntoIterator<Item = A>,
) -> Result<(), String> {
    let arguments = arguments.into_iter().map(Into::into);
    let words = [OsString::from("lacuna")].into_iter().chain(arguments);
    let cli = Cli::read(words.collect());
    let cli = cli.map_err(|e| e.to_string())?;
    cli.run().await.map_err(|e| format!("{e:#}"))
}

/// A command line that grows, and the folder that its files go to.
#[derive(Clone)]
pub struct Journey {
    arguments: Vec<OsString>,
    folder: Arc<tempfile::TempDir>,
}

impl Journey {
    /// The picture of the golden file `name`: its model, prompts, sizes, seed and noise.
    pub fn golden(golden: &Golden) -> Self {
        let name = golden.case()["name"].as_str().unwrap();
        Self::of(golden, &model_dir(name)).with_noise(golden.host("pipe.latents0"))
    }

    /// A picture of the demo model with its golden noise; none, with a word on it, where that is not there.
    pub fn demo() -> Option<Self> {
        if !has_golden("demo") {
            println!(
                "skipped: tests/goldens/demo.safetensors is not there (make_goldens.py makes it)"
            );
            return None;
        }
        let golden = Golden::load("demo");
        let journey = Self::of(&golden, &repository().join("assets/demo-model"));
        Some(journey.with_noise(golden.host("pipe.latents0")))
    }

    /// The same without the noise, which the seed then gives.
    pub fn seeded(golden: &Golden) -> Self {
        let case = golden.case();
        let name = case["name"].as_str().unwrap();
        let journey = Self::of(golden, &model_dir(name));
        ["seed", "width", "height"]
            .into_iter()
            .fold(journey, |j, key| {
                j.with(&format!("--{key}"), case[key].to_string())
            })
    }

    /// The prompts and settings of a golden file with the model in `model`.
    pub fn of(golden: &Golden, model: &Path) -> Self {
        let flags = golden.case()["flags"].as_array().into_iter().flatten();
        let flags: Vec<&str> = flags.map(|flag| flag.as_str().unwrap()).collect();
        let pairs = flags.chunks(2);
        pairs.fold(Self::bare(golden, model), |journey, pair| {
            journey.with(pair[0], pair[1])
        })
    }

    /// The same without the golden file's own flags.
    pub fn bare(golden: &Golden, model: &Path) -> Self {
        let case = golden.case();
        let journey = Self {
            arguments: vec!["generate".into(), case["prompt"].as_str().unwrap().into()],
            folder: Arc::new(tempfile::tempdir().unwrap()),
        };
        let journey = match case["negative_prompt"].as_str() {
            Some(negative) => journey.with("--negative-prompt", negative),
            None => journey,
        };
        journey
            .with("--model", model)
            .with("--device", "cpu")
            .with("--steps", case["steps"].to_string())
            .with("--guidance", case["guidance"].to_string())
            .with("--seed", "42")
            .with("--scheme", "local")
    }

    /// With another prompt.
    pub fn asking(mut self, prompt: &str) -> Self {
        self.arguments[1] = prompt.into();
        self
    }

    /// With a flag; the last value given counts.
    pub fn with(mut self, flag: &str, value: impl Into<OsString>) -> Self {
        if let Some(at) = self.arguments.iter().position(|a| a == flag) {
            self.arguments.drain(at..at + 2);
        }
        self.arguments.extend([flag.into(), value.into()]);
        self
    }

    /// With a flag once more.
    pub fn with_more(mut self, flag: &str, value: impl Into<OsString>) -> Self {
        self.arguments.extend([flag.into(), value.into()]);
        self
    }

    /// With flags and their values, as they are written.
    pub fn with_all(self, words: &str) -> Self {
        let words: Vec<&str> = words.split_whitespace().collect();
        let pairs = words.chunks(2);
        pairs.fold(self, |journey, pair| journey.with(pair[0], pair[1]))
    }

    /// By the paper's scheme, over `n` workers started by the command itself.
    pub fn over_local_workers(self, n: usize) -> Self {
        self.with("--scheme", "ppidm")
            .with("--local-workers", n.to_string())
    }

    /// On resident strips, over `n` workers started by the command itself.
    pub fn on_resident_strips(self, n: usize) -> Self {
        self.over_local_workers(n).with("--scheme", "resident")
    }

    /// By shares that tell nothing, over `n` workers started by the command itself.
    pub fn by_shares(self, n: usize) -> Self {
        self.over_local_workers(n).with("--scheme", "blind")
    }

    /// From `noise` in place of the seed's.
    pub fn with_noise(self, noise: &HostTensor) -> Self {
        // A clone may have another noise in the same folder.
        let entries = std::fs::read_dir(self.folder.path()).unwrap().count();
        let path = self.file(&format!("noise-{entries}.safetensors"));
        write_latents(&path, noise).unwrap();
        self.with("--latents", path)
    }

    /// A workers file of addresses, providers, and whether each is a spare.
    pub fn fleet(&self, workers: &[(&str, &str, bool)]) -> PathBuf {
        let entry = |(url, provider, spare): &(&str, &str, bool)| {
            format!("[[worker]]\nurl = \"{url}\"\nprovider = \"{provider}\"\nspare = {spare}\n")
        };
        let path = self.file("workers.toml");
        std::fs::write(&path, workers.iter().map(entry).collect::<String>()).unwrap();
        path
    }

    /// The private policy with another bound.
    pub fn policy(&self, max_rows: f64) -> PathBuf {
        let text = repository().join("configs/policies/private.toml");
        let text = std::fs::read_to_string(text).unwrap();
        let path = self.file("policy.toml");
        let changed = text.replace("max_rows = 0.25", &format!("max_rows = {max_rows}"));
        assert_ne!(text, changed);
        std::fs::write(&path, changed).unwrap();
        path
    }

    /// A file of this journey.
    pub fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Without what belongs to the scheme `resident`, where it is another by now: that would be refused.
    fn for_its_scheme(mut self) -> Self {
        let scheme = self.arguments.iter().position(|a| a == "--scheme");
        if scheme.is_some_and(|at| self.arguments[at + 1] == "resident") {
            return self;
        }
        for flag in [
            "--lanes",
            "--self-attention",
            "--wire",
            "--workers-prompt",
            "--workers-latents",
        ] {
            if let Some(at) = self.arguments.iter().position(|a| a == flag) {
                self.arguments.drain(at..at + 2);
            }
        }
        self
    }

    /// Makes the pictures; gives their files.
    ///
    /// # Errors
    /// As [`fn@lacuna`].
    pub async fn go(&self) -> Result<Files, String> {
        let (result, files) = self.end().await;
        if let Err(error) = &result {
            // What was done is told in any case.
            let mut names = files.names();
            names.retain(|name| name != "report.json");
            assert_eq!(names, [""; 0], "files left after: {error}");
        }
        result.map(|()| files)
    }

    /// Makes what pictures it can; gives how it ended, and the files that are there.
    pub async fn end(&self) -> (Result<(), String>, Files) {
        // Several runs of one journey keep apart.
        let folder = tempfile::tempdir_in(self.folder.path()).unwrap();
        let files = Files {
            folder: folder.keep(),
            _journey: self.folder.clone(),
        };
        let journey = self
            .clone()
            .for_its_scheme()
            .with("--out", files.path("pic.png"))
            .with("--save-latents", files.path("latents.safetensors"))
            .with("--report", files.path("report.json"));
        (lacuna(journey.arguments).await, files)
    }
}

/// Workers at two providers, none of them a spare.
pub fn two<'a>(a: &'a str, b: &'a str) -> [(&'a str, &'static str, bool); 2] {
    [(a, "a", false), (b, "b", false)]
}

/// What a journey leaves.
pub struct Files {
    folder: PathBuf,
    /// Keeps the folder above from being deleted.
    _journey: Arc<tempfile::TempDir>,
}

impl Files {
    /// A file by name.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// Names of all files, sorted.
    pub fn names(&self) -> Vec<String> {
        let entries = std::fs::read_dir(&self.folder).unwrap();
        let names = entries.map(|e| e.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<String> = names.collect();
        names.sort();
        names
    }

    /// The picture.
    pub fn png(&self) -> Png {
        Png::read(&self.path("pic.png"))
    }

    /// The final latents.
    pub fn latents(&self) -> HostTensor {
        only_latents(&self.path("latents.safetensors"))
    }

    /// PSNR of the final latents against those of `other`, over the range that these have.
    pub fn latents_psnr(&self, other: &Self) -> f64 {
        let values = |files: &Self| -> Vec<f64> {
            files.latents().data.iter().map(|v| f64::from(*v)).collect()
        };
        let (own, other) = (values(self), values(other));
        let range = other.iter().fold(0f64, |most, v| most.max(v.abs())) * 2.0;
        psnr(&own, &other, range)
    }

    /// What each provider saw, by the ledger; of one at least.
    pub fn views(&self) -> Vec<Value> {
        let report = self.report();
        let ledger = report["ledger"].as_object().unwrap();
        assert!(!ledger.is_empty());
        ledger.values().cloned().collect()
    }

    /// The report.
    pub fn report(&self) -> Value {
        serde_json::from_slice(&std::fs::read(self.path("report.json")).unwrap()).unwrap()
    }
}

/// The one picture's latents in a file.
pub fn only_latents(path: &Path) -> HostTensor {
    let bytes = std::fs::read(path).unwrap();
    assert_eq!(SafeTensors::deserialize(&bytes).unwrap().len(), 1);
    let mut all = read_latents(path).unwrap();
    assert_eq!(all.len(), 1);
    all.remove(0)
}

/// A PNG file that was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Png {
    /// Columns.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// Bytes in rows of pixels.
    pub rgb: Vec<u8>,
    /// Keywords and texts.
    pub text: Vec<(String, String)>,
}

impl Png {
    /// Reads an 8-bit RGB file.
    pub fn read(path: &Path) -> Self {
        let file = std::io::BufReader::new(std::fs::File::open(path).unwrap());
        let mut reader = png::Decoder::new(file).read_info().unwrap();
        let mut rgb = vec![0; reader.output_buffer_size().unwrap()];
        let frame = reader.next_frame(&mut rgb).unwrap();
        assert_eq!(
            (frame.color_type, frame.bit_depth),
            (png::ColorType::Rgb, png::BitDepth::Eight)
        );
        let chunks = reader.info().utf8_text.iter();
        let text = chunks.map(|c| (c.keyword.clone(), c.get_text().unwrap()));
        Self {
            width: frame.width as usize,
            height: frame.height as usize,
            text: text.collect(),
            rgb,
        }
    }

    /// A text by its keyword.
    pub fn text(&self, keyword: &str) -> Option<&str> {
        let found = self.text.iter().find(|(k, _)| k == keyword);
        found.map(|(_, text)| text.as_str())
    }

    /// The bytes as numbers in 0..255.
    pub fn values(&self) -> Vec<f64> {
        self.rgb.iter().map(|b| f64::from(*b)).collect()
    }

    /// The largest difference of a byte, and how many differ.
    pub fn difference(&self, other: &Self) -> (u8, usize) {
        assert_eq!((self.width, self.height), (other.width, other.height));
        let pairs = self.rgb.iter().zip(&other.rgb);
        let differences = pairs.map(|(a, b)| a.abs_diff(*b)).filter(|d| *d > 0);
        differences.fold((0, 0), |(most, n), d| (most.max(d), n + 1))
    }
}
