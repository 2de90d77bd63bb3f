//! Adapters that are sent to workers that hold the model without: once, to those who may have them, and nothing else along.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use lacuna_model::unet::Source;
use lacuna_orchestrator::fleet::adapters;
use lacuna_orchestrator::fleet::config::FleetConfig;
use lacuna_orchestrator::fleet::store::{Package, Pushed, list, remove};
use lacuna_protocol::models::{
    ADAPTED, Adapted, Announcement, FileSize, Stored, StoredAdapter, adapter_file,
};
use lacuna_wire::{HostTensor, to_safetensors};
use lacuna_worker::Options;
use reqwest::{Method, StatusCode};
use tests::caller::{Answer, Caller};
use tests::golden::{Golden, model_dir};
use tests::journey::{Journey, lacuna};
use tests::low_rank;
use tests::workers::{RunningWorker, fleet_file};

const MODEL: &str = "odd";

/// A worker's folders, an adapter, and who may what.
struct Place {
    folder: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("tokens"), "paints\npushes push\n").unwrap();
        let place = Self { folder };
        low_rank::adapter(MODEL, &place.adapter(), 1.0);
        place
    }

    fn adapter(&self) -> PathBuf {
        self.folder.path().join("style.safetensors")
    }

    fn lora(&self, strength: f32) -> String {
        format!("{}:{strength}", self.adapter().display())
    }

    fn options(&self, store: &str) -> Options {
        Options {
            token_file: Some(self.folder.path().join("tokens")),
            store: Some((self.folder.path().join(store), 1 << 30)),
            session_wait: Duration::from_secs(10),
            ..Options::default()
        }
    }

    /// The files in a store, by the model that they are of.
    fn files(&self, store: &str) -> BTreeMap<String, Vec<String>> {
        let names = |dir: &Path| {
            let entries = std::fs::read_dir(dir).unwrap().map(Result::unwrap);
            let mut names: Vec<String> = entries
                .map(|entry| entry.file_name().into_string().unwrap())
                .collect();
            names.sort();
            names
        };
        let models = self.folder.path().join(store).join("models");
        let all = names(&models).into_iter();
        all.map(|name| (name.clone(), names(&models.join(name))))
            .collect()
    }

    fn fleet(&self, workers: &[&RunningWorker], token: &str) -> PathBuf {
        let folder = self.folder.path().join(token);
        std::fs::create_dir_all(&folder).unwrap();
        let workers: Vec<_> = workers
            .iter()
            .map(|worker| (worker.url.as_str(), Some(token)))
            .collect();
        fleet_file(&folder, &workers)
    }
}

fn journey() -> Journey {
    let golden = Golden::load(MODEL);
    Journey::of(&golden, &model_dir(MODEL)).with("--steps", "2")
}

async fn kept(fleet: &Path, worker: usize) -> Stored {
    let fleet = FleetConfig::from_file(fleet).unwrap();
    list(&fleet.workers[worker]).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn workers_that_hold_the_model_get_its_adapters_once() {
    let place = Place::new();
    // One was started with the model, the other one was sent it.
    let given = RunningWorker::start(MODEL, &place.options("a")).await;
    let sent = RunningWorker::of_store(&place.options("b")).await;
    let fleet = place.fleet(&[&given, &sent], "pushes");
    let dir = model_dir(MODEL);
    let push = ["models", "push", "--fleet", fleet.to_str().unwrap()];
    let push = [&push[..], &["--model", dir.to_str().unwrap()]].concat();
    lacuna(push.clone()).await.unwrap();

    let plain = journey();
    let over = plain.clone().with("--fleet", &fleet);
    let over = over.with("--scheme", "resident");
    let base = over.clone().go().await.unwrap().latents();
    for strength in [1.0, 0.25] {
        let lora = place.lora(strength);
        let local = plain.clone().with("--lora", &lora);
        let local = local.with("--scheme", "local").go().await.unwrap();
        let split = over.clone().with("--lora", &lora).go().await.unwrap();
        assert_eq!(split.latents(), local.latents(), "{strength}");
        assert_ne!(split.latents(), base);
        assert!(split.views().iter().all(|view| view["adapters"] == true));
    }
    // Both took both, the second strength without its file, which was there.
    for (store, whole) in [("a", 0), ("b", 1)] {
        let files = place.files(store);
        assert_eq!(files.len(), 2 + whole, "{files:?}");
        let adapted: Vec<_> = files
            .iter()
            .filter(|(_, names)| names.contains(&ADAPTED.to_owned()))
            .collect();
        assert_eq!(adapted.len(), 2);
        assert_eq!(adapted[0].1, adapted[1].1);
        let is_weights = |name: &&String| name.ends_with(".safetensors");
        let name = adapted[0].1.iter().find(is_weights).unwrap();
        let models = place.folder.path().join(store).join("models");
        let path = models.join(adapted[0].0).join(name);
        assert_eq!(std::fs::metadata(path).unwrap().nlink(), 2, "{name}");
    }
    // What is there is not sent again: not for a picture, and not by hand.
    let before = (place.files("a"), place.files("b"));
    let lora = place.lora(0.25);
    over.clone().with("--lora", &lora).go().await.unwrap();
    let by_hand = [&push[..], &["--lora", &lora]].concat();
    lacuna(by_hand).await.unwrap();
    assert_eq!((place.files("a"), place.files("b")), before);

    // Who holds them says what they adapt; without that they are of no use, and not offered.
    let stored = kept(&fleet, 1).await;
    let adapts: Vec<_> = stored
        .models
        .iter()
        .filter_map(|m| m.adapts.as_deref())
        .collect();
    assert_eq!(adapts.len(), 2);
    assert_eq!(adapts[0], adapts[1]);
    let offered = || {
        let digests = sent.service.info().models.into_iter();
        digests.map(|model| model.digest).collect::<Vec<_>>()
    };
    assert_eq!(offered().len(), 3);
    let worker = &FleetConfig::from_file(&fleet).unwrap().workers[1];
    sent.is_left().await;
    remove(worker, adapts[0]).await.unwrap();
    assert_eq!(offered(), [] as [String; 0]);
    // With it, they are again.
    lacuna(push).await.unwrap();
    over.clone().with("--lora", &lora).go().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn who_takes_none_is_named_with_the_way_out() {
    let place = Place::new();
    let worker = RunningWorker::start(MODEL, &place.options("a")).await;
    let run = |token: &str| {
        let fleet = place.fleet(&[&worker], token);
        let run = journey().with("--scheme", "resident");
        run.with("--lora", place.lora(1.0)).with("--fleet", fleet)
    };
    let error = run("paints").go().await.err().unwrap();
    for part in [
        "does not have the adapters",
        "may not push",
        "--scheme blind",
        &worker.url,
    ] {
        assert!(error.contains(part), "{error}");
    }
    // A policy may keep them at home, and then nothing is sent.
    let hiding = low_rank::hiding(&place.folder.path().join("hiding.toml"));
    let refused = run("pushes").with("--policy", hiding).go().await;
    let refused = refused.err().unwrap();
    assert!(refused.contains("adapters = hidden"), "{refused}");
    assert_eq!(place.files("a").len(), 0);
    run("pushes").go().await.unwrap();
    assert_eq!(place.files("a").len(), 1);
}

/// Several pictures, and several users, may need them at once.
#[tokio::test(flavor = "multi_thread")]
async fn many_may_send_the_same_at_once() {
    let place = Place::new();
    let worker = RunningWorker::start(MODEL, &place.options("a")).await;
    let fleet = FleetConfig::from_file(&place.fleet(&[&worker], "pushes")).unwrap();
    let source = Source::folder(&model_dir(MODEL).join("unet"));
    let stored = source.open(&[place.lora(1.0).parse().unwrap()]).unwrap();
    let package: Package = adapters::package(&stored).unwrap();
    let pushes = (0..6).map(|_| package.push(&fleet.workers[0], |_| ()));
    let pushed = futures::future::join_all(pushes).await;
    let sent: u64 = pushed
        .into_iter()
        .map(|pushed| match pushed.unwrap() {
            Pushed::Held => 0,
            Pushed::Sent(bytes) => bytes,
        })
        .sum();
    assert!(sent >= package.bytes());
    assert_eq!(place.files("a").len(), 1);
    assert!(place.files("a").contains_key(stored.digest().unwrap()));
}

/// What a user's side sends, as somebody who means harm makes it.
struct Harm {
    digest: String,
    files: Vec<(String, Vec<u8>)>,
}

impl Harm {
    async fn push(&self, caller: &Caller) -> Answer {
        let sizes = self.files.iter().map(|(name, content)| FileSize {
            name: name.clone(),
            bytes: content.len() as u64,
        });
        let announced = Announcement {
            files: sizes.collect(),
        };
        let path = format!("v1/models/{}", self.digest);
        let begun = Caller::send(caller.request(Method::POST, &path).json(&announced)).await;
        if begun.status != StatusCode::OK {
            return begun;
        }
        for (name, content) in &self.files {
            let path = format!("{path}/{name}/0");
            let request = caller.request(Method::POST, &path);
            Caller::send(request.body(content.clone())).await;
        }
        Caller::send(caller.request(Method::POST, &format!("{path}/finish"))).await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_adapter_of_a_model_that_is_there_is_refused() {
    let place = Place::new();
    let worker = RunningWorker::start(MODEL, &place.options("a")).await;
    let caller = Caller::new(&worker).with_token("pushes");
    let source = Source::folder(&model_dir(MODEL).join("unet"));
    let stored = source.open(&[place.lora(1.0).parse().unwrap()]).unwrap();
    let (base, digest) = (stored.base_digest().unwrap(), stored.digest().unwrap());
    let (content, strength) = stored.adapter_files().unwrap().remove(0);
    let name = adapter_file(&blake3::hash(&content));
    let adapted = |model: &str, file: &str, strength: f32| {
        let adapters = vec![StoredAdapter {
            file: file.into(),
            strength,
        }];
        let model = model.into();
        let adapted = serde_json::to_vec(&Adapted { model, adapters }).unwrap();
        (ADAPTED.to_owned(), adapted)
    };
    let file = |content: &[u8]| (adapter_file(&blake3::hash(content)), content.to_vec());
    let of_other_layer = {
        let factor = HostTensor::new([2, 4], vec![1.0; 8]).unwrap();
        let up = HostTensor::new([4, 2], vec![1.0; 8]).unwrap();
        let tensors = [("x.lora_A.weight", &factor), ("x.lora_B.weight", &up)];
        file(&to_safetensors(tensors, None).unwrap())
    };
    let elsewhere = "0f".repeat(32);
    let long_header = file(&[&u64::MAX.to_le_bytes()[..], &[b' '; 64]].concat());
    let renamed = (adapter_file(&blake3::hash(b"another")), content.clone());
    let whole = file(&content);
    for (told, files) in [
        (
            "does not hold",
            vec![adapted(&elsewhere, &name, strength), whole.clone()],
        ),
        (
            "not the one",
            vec![adapted(&base, &name, 0.5), whole.clone()],
        ),
        (
            "named by its digest",
            vec![adapted(&base, &renamed.0, strength), renamed.clone()],
        ),
        (
            "has no layer",
            vec![
                adapted(&base, &of_other_layer.0, strength),
                of_other_layer.clone(),
            ],
        ),
        (
            "a header of",
            vec![
                adapted(&base, &long_header.0, strength),
                long_header.clone(),
            ],
        ),
        (
            "64 digits",
            vec![adapted("../../x", &name, strength), whole.clone()],
        ),
        (
            "no part of the model",
            vec![
                adapted(&base, &name, strength),
                whole.clone(),
                of_other_layer.clone(),
            ],
        ),
        (
            "adapted.json",
            vec![(ADAPTED.to_owned(), b"[]".to_vec()), whole.clone()],
        ),
    ] {
        let harm = Harm {
            digest: digest.to_owned(),
            files,
        };
        let answer = harm.push(&caller).await;
        assert_eq!(answer.status, StatusCode::UNPROCESSABLE_ENTITY, "{told}");
        let said = String::from_utf8_lossy(&answer.body).into_owned();
        assert!(said.contains(told), "{told}: {said}");
        assert_eq!(place.files("a").len(), 0, "{told}");
    }
    let good = Harm {
        digest: digest.to_owned(),
        files: vec![adapted(&base, &name, strength), whole],
    };
    assert_eq!(good.push(&caller).await.status, StatusCode::NO_CONTENT);
}
