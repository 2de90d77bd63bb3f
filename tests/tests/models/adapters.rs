//! Low-rank adapters: the picture is that of weights that were merged beforehand, wherever it is computed, and
//! both sides know of them.

use std::path::PathBuf;

use lacuna_model::device::OpenDevice;
use lacuna_model::weights::AdapterFile;
use lacuna_wire::HostTensor;
use lacuna_worker::{Model, Options};
use tests::golden::{Golden, model_dir};
use tests::journey::Journey;
use tests::low_rank;
use tests::workers::{RunningWorker, fleet_file};

const MODEL: &str = "odd";
const STRENGTH: f32 = 0.5;

async fn worker(lora: &[PathBuf]) -> RunningWorker {
    let files: Vec<AdapterFile> = lora
        .iter()
        .map(|path| AdapterFile {
            path: path.clone(),
            strength: STRENGTH,
        })
        .collect();
    let dir = model_dir(MODEL).join("unet");
    let model = Model::load(&dir, None, &files, &OpenDevice::cpu().device).unwrap();
    RunningWorker::of(model.into(), &Options::default()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_picture_is_that_of_merged_weights_and_both_sides_know_the_adapter() {
    let golden = Golden::load(MODEL);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("style.safetensors");
    let merged = low_rank::adapter(MODEL, &file, STRENGTH);
    let lora = format!("{}:{STRENGTH}", file.display());
    let plain = Journey::of(&golden, &model_dir(MODEL)).with("--steps", "3");
    let local = plain.clone().with("--scheme", "local");
    let without = local.clone().go().await.unwrap().latents();
    let of_merged = Journey::of(&golden, merged.path()).with("--steps", "3");
    let want = of_merged.with("--scheme", "local").go().await.unwrap();
    let (want, got) = (
        want.latents(),
        local.with("--lora", &lora).go().await.unwrap().latents(),
    );
    let distance = |a: &HostTensor, b: &HostTensor| {
        let pairs = a.data.iter().zip(&b.data);
        pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
    };
    assert!(distance(&got, &without) > 0.05, "it changes something");
    assert!(distance(&got, &want) < 1e-3, "{}", distance(&got, &want));

    // Over workers that hold the adapter it is the same to the bit.
    let files = [file];
    let [first, second] = [worker(&files).await, worker(&files).await];
    let resident = plain.with("--scheme", "resident");
    let workers = [(first.url.as_str(), None), (second.url.as_str(), None)];
    let fleet = fleet_file(resident.file("").as_path(), &workers);
    let over = resident.clone().with("--fleet", &fleet);
    let split = over.clone().with("--lora", &lora).go().await.unwrap();
    assert!(split.latents() == got);
    assert!(split.views().iter().all(|view| view["adapters"] == true));
    // A policy may keep it from providers, and then it is theirs by no scheme that gives it to workers.
    let hidden = low_rank::hiding(&resident.file("hiding.toml"));
    let kept = over.clone().with("--lora", &lora).with("--policy", hidden);
    let error = kept.go().await.err().expect("a refusal");
    for part in ["adapters = hidden", "--lora", "--scheme blind"] {
        assert!(error.contains(part), "{error}");
    }

    // One side alone knows of it.
    let error = over.go().await.err().expect("a failure");
    assert!(error.contains("holds the model"), "{error}");
    let ignorant = worker(&[]).await;
    let fleet = fleet_file(resident.file("").as_path(), &[(&ignorant.url, None)]);
    let run = resident.with("--fleet", &fleet).with("--lora", &lora);
    let error = run.go().await.err().expect("a failure");
    for part in ["does not have the adapters", "--store", "--scheme blind"] {
        assert!(error.contains(part), "{error}");
    }
}

/// Under `blind` workers hold the model without the adapter, whose layers the user adds to.
#[tokio::test(flavor = "multi_thread")]
async fn an_adapter_can_stay_at_home() {
    let golden = Golden::load(MODEL);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("style.safetensors");
    low_rank::adapter(MODEL, &file, STRENGTH);
    let lora = format!("{}:{STRENGTH}", file.display());
    let plain = Journey::of(&golden, &model_dir(MODEL)).with("--steps", "3");
    let adapted = plain.clone().with("--lora", &lora);
    let want = adapted
        .clone()
        .with("--scheme", "local")
        .go()
        .await
        .unwrap();
    let without = plain.clone().with("--scheme", "local").go().await.unwrap();

    let [first, second] = [worker(&[]).await, worker(&[]).await];
    let workers = [(first.url.as_str(), None), (second.url.as_str(), None)];
    let fleet = fleet_file(plain.file("").as_path(), &workers);
    let blind = adapted.with("--scheme", "blind").with("--fleet", &fleet);
    let blind = blind.with("--share-bits", "quality");
    let hidden = low_rank::hiding(&plain.file("hiding.toml"));
    let blind = blind.with("--policy", hidden);
    let distance = |a: &HostTensor, b: &HostTensor| {
        let pairs = a.data.iter().zip(&b.data);
        pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
    };
    for options in ["", "--share-layers all", "--shares ring --share-layers all"] {
        let blind = blind.clone().with_all(options).go().await.unwrap();
        assert!(blind.views().iter().all(|view| view["adapters"] == false));
        let of = [&want, &without].map(|files| distance(&blind.latents(), &files.latents()));
        let [near, far] = of;
        println!("{options}: {near} from the picture with the adapter, {far} from that without");
        assert!(near < 0.5 && far > 20.0 * near, "{options}: {near}, {far}");
    }
}
