//! Models in one file: the same pictures as of the folders that they were made of, by the same digests.

use std::path::{Path, PathBuf};

use lacuna_model::device::OpenDevice;
use lacuna_model::layers::Parameter;
use lacuna_model::unet::UNetConfig;
use lacuna_model::weights::{Checkpoint, list};
use lacuna_orchestrator::family::Family;
use lacuna_orchestrator::model::ModelFiles;
use lacuna_orchestrator::pipeline::Pipeline;
use lacuna_orchestrator::text::{ClipTextLayers, ClipTokenizer};
use lacuna_wire::HostTensor;
use lacuna_worker::Model;
use serde_json::{Value, json};
use tests::golden::{Golden, model_dir, repository};
use tests::journey::{Files, Journey};

const MODELS: [&str; 3] = ["sd1", "sd2", "xl"];

fn file(name: &str) -> PathBuf {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("goldens/one-file");
    folder.join(format!("{name}.safetensors"))
}

fn journey(name: &str) -> Journey {
    Journey::seeded(&Golden::load(name)).with("--steps", "2")
}

fn of_file(name: &str) -> Journey {
    journey(name)
        .with("--model", file(name))
        .with("--model-config", model_dir(name))
}

fn digest(files: &Files) -> String {
    files.report()["model"].as_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_makes_its_folders_picture() {
    for name in MODELS {
        let folder = journey(name).go().await.unwrap();
        let one = of_file(name).go().await.unwrap();
        assert!(one.latents() == folder.latents(), "{name}");
        assert!(one.png().rgb == folder.png().rgb, "{name}");
        // Workers that hold the folder compute for whoever has the file.
        assert_eq!(digest(&one), digest(&folder), "{name}");
        let config = model_dir(name).join("unet/config.json");
        let device = OpenDevice::cpu().device;
        let worker = Model::load_one_file(&file(name), Some(&config), &[], &device).unwrap();
        assert_eq!(worker.digest(), digest(&folder), "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn another_autoencoder_is_read_from_either_layout() {
    // That of sd2 in place of sd1's: of as many channels, with other weights.
    let own = journey("sd1").go().await.unwrap();
    let swapped = journey("sd1").with("--vae", model_dir("sd2"));
    let swapped = swapped.go().await.unwrap();
    assert!(own.latents() == swapped.latents());
    assert!(own.png().rgb != swapped.png().rgb);
    let error = journey("sd1").with("--vae", file("sd1")).go().await;
    // What groups there are is in no file; published ones have 32.
    let error = error.err().unwrap();
    assert!(error.contains("norm_num_groups"), "{error}");
}

/// The file without the tensors that begin with `left_out`.
fn without(left_out: &str, path: &Path) {
    let whole = Checkpoint::open_file(&file("sd1")).unwrap();
    let names: Vec<&str> = whole.names().collect();
    // Numbers of positions, which are no weights.
    let kept = names
        .into_iter()
        .filter(|name| !name.starts_with(left_out) && !name.ends_with("position_ids"));
    let kept = kept.map(|name| (name, whole.read(name).unwrap()));
    let kept: Vec<(&str, HostTensor)> = kept.collect();
    let kept = kept.iter().map(|(name, tensor)| (*name, tensor));
    std::fs::write(path, lacuna_wire::to_safetensors(kept, None).unwrap()).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_without_an_autoencoder_takes_another() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("bare.safetensors");
    without("first_stage_model.", &path);
    let bare = of_file("sd1").with("--model", &path);
    let error = bare.clone().go().await.err().unwrap();
    assert!(error.contains("--vae"), "{error}");
    let whole = of_file("sd1").go().await.unwrap();
    let taken = bare.with("--vae", model_dir("sd1").join("vae"));
    assert!(taken.go().await.unwrap().png().rgb == whole.png().rgb);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_missing_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let empty = folder.path().join("empty.txt");
    std::fs::write(&empty, "").unwrap();
    let textless = folder.path().join("textless.safetensors");
    without("cond_stage_model.", &textless);
    for (journey, named) in [
        (
            of_file("sd1").with("--tokenizer", &empty),
            "there are no merges",
        ),
        (
            of_file("sd1").with("--tokenizer", repository().join("assets/demo-model")),
            "it is of another model",
        ),
        (
            of_file("sd1").with("--model-config", model_dir("xl")),
            "--model-config",
        ),
        (
            of_file("sd1").with("--tokenizer", "/nowhere/vocabulary"),
            "--tokenizer",
        ),
        (
            journey("sd1").with("--tokenizer", model_dir("sd1")),
            "--tokenizer is for a model in one file",
        ),
        (
            journey("sd1").with("--model", model_dir("sd1").join("vae/config.json")),
            "safetensors",
        ),
        (
            journey("sd1").with(
                "--model",
                model_dir("sd2").join("unet/diffusion_pytorch_model.safetensors"),
            ),
            "are those of a diffusers folder's unet",
        ),
        (
            journey("sd1").with(
                "--model",
                repository().join("assets/demo-lcm-lora.safetensors"),
            ),
            "it is an adapter",
        ),
        (
            of_file("sd1").with("--model", &textless),
            "no text encoder in it (tensors cond_stage_model.transformer.*)",
        ),
        (
            journey("sd1").with("--model", "hf:nobody/nothing"),
            "hf download",
        ),
    ] {
        let error = journey.go().await.err().unwrap();
        assert!(error.contains(named), "{named}: {error}");
    }
}

#[test]
fn clips_own_vocabulary_is_the_tokenizer() {
    // The tiny vocabulary has the form of CLIP's: bytes, bytes that end a word, merges, start and end.
    let dir = model_dir("sd1").join("tokenizer");
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("vocabulary.txt");
    std::fs::copy(dir.join("merges.txt"), &path).unwrap();
    let golden = Golden::load("sd1");
    let (whole, own) = (
        ClipTokenizer::load(&dir).unwrap(),
        ClipTokenizer::of_clip(&path).unwrap(),
    );
    for prompt in golden.prompts() {
        let ids = |tokenizer: &ClipTokenizer| tokenizer.encode(prompt).unwrap();
        assert_eq!(ids(&whole), ids(&own), "{prompt:?}");
    }
    let padded = own.padded_with("!").unwrap().encode("a cat").unwrap();
    assert_eq!(padded.last(), Some(&0));
}

#[test]
fn without_a_config_a_model_is_taken_for_one_of_published_sizes() {
    let error = Pipeline::open(&file("sd1"), None, &[], &OpenDevice::cpu().device);
    let error = error.err().unwrap().to_string();
    // Tiny widths have no 32 groups.
    assert!(
        error.contains("from its tensors") && error.contains("norm_num_groups"),
        "{error}"
    );
}

/// A file of zeros with the tensors of `shapes`, which takes no room: a header and a hole.
fn hollow(path: &Path, shapes: &serde_json::Map<String, Value>) {
    let mut at = 0;
    let mut header = serde_json::Map::new();
    for (name, shape) in shapes {
        let sides: Vec<u64> = serde_json::from_value(shape.clone()).unwrap();
        let end = at + sides.iter().product::<u64>();
        let entry = json!({"dtype": "F8_E4M3", "shape": shape, "data_offsets": [at, end]});
        header.insert(name.clone(), entry);
        at = end;
    }
    let header = Value::Object(header).to_string();
    let bytes = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes()].concat();
    std::fs::write(path, &bytes).unwrap();
    let hollow = std::fs::File::options().write(true).open(path).unwrap();
    hollow.set_len(bytes.len() as u64 + at).unwrap();
}

/// A vocabulary of as many tokens as CLIP's, in the form of its file: a line of comment, and a merge on each.
fn vocabulary(path: &Path) {
    let letters = || ('!'..='~').chain('¡'..='¬').chain('®'..='ÿ');
    let pairs = letters().flat_map(|a| letters().map(move |b| format!("{a} {b}\n{a} {b}</w>\n")));
    std::fs::write(path, format!("#\n{}", pairs.collect::<String>())).unwrap();
}

#[test]
fn files_of_published_sizes_need_no_config() {
    let packed = std::fs::File::open(file("sd1").with_file_name("published.json.gz")).unwrap();
    let published: Value = serde_json::from_reader(flate2::read::GzDecoder::new(packed)).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let words = folder.path().join("vocabulary.txt");
    vocabulary(&words);
    for (name, config, family, widths) in [
        ("sd1", "sd15", Family::StableDiffusion, [768].as_slice()),
        ("xl", "sdxl", Family::StableDiffusionXl, &[768, 1280]),
    ] {
        let path = folder.path().join(format!("{name}.safetensors"));
        hollow(&path, published[name].as_object().unwrap());
        let files = ModelFiles {
            tokenizer: Some(words.clone()),
            ..ModelFiles::of(&path)
        };
        let parts = files.open().unwrap();
        assert_eq!(parts.family, family, "{name}");
        let config = repository().join(format!("configs/models/{config}/unet/config.json"));
        let config = UNetConfig::from_file(&config).unwrap();
        assert_eq!(parts.unet_config.build(), config.build(), "{name}");
        let text = parts.text.iter().map(|(_, stored)| stored.layers());
        let text: Vec<usize> = text.map(ClipTextLayers::width).collect();
        assert_eq!(text, widths, "{name}");
        let values =
            |parameters: &[Parameter]| -> usize { parameters.iter().map(Parameter::values).sum() };
        // Of the published autoencoder and text encoders.
        assert_eq!(values(&list(parts.vae.layers())), 83_653_863, "{name}");
        let of_text = parts
            .text
            .iter()
            .map(|(_, stored)| values(&list(stored.layers())));
        let of_text: Vec<usize> = of_text.collect();
        let wanted: &[usize] = match name {
            "sd1" => &[123_060_480],
            _ => &[123_060_480, 694_659_840],
        };
        assert_eq!(of_text, wanted, "{name}");
        let predicts = parts.scheduler.prediction_type;
        assert!(predicts.is_none(), "{name}: {predicts:?}");
    }
}
