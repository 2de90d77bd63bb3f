//! Models in one file: the same pictures as of the folders that they were made of, by the same digests.

use std::path::PathBuf;

use lacuna_model::device::OpenDevice;
use lacuna_orchestrator::pipeline::Pipeline;
use lacuna_orchestrator::text::ClipTokenizer;
use lacuna_worker::Model;
use tests::golden::{Golden, model_dir};
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

#[tokio::test(flavor = "multi_thread")]
async fn what_is_missing_is_named() {
    for (journey, named) in [
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
            "input_blocks.0.0.weight is missing",
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
fn a_file_of_the_published_shape_needs_no_config() {
    let error = Pipeline::open(&file("sd1"), None, &[], &OpenDevice::cpu().device);
    let error = error.err().unwrap().to_string();
    // Tiny widths have no 32 groups: told by its tensors alone, the config is that of a published model.
    assert!(
        error.contains("from its tensors") && error.contains("norm_num_groups"),
        "{error}"
    );
}
