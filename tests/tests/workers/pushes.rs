//! Models that are pushed to workers: in pieces, by whoever may, and no others; and pictures made with them.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use lacuna_orchestrator::fleet::config::FleetConfig;
use lacuna_orchestrator::fleet::store::{self, Package, Pushed};
use lacuna_orchestrator::model::ModelFiles;
use lacuna_protocol::models::{Announcement, FileSize, Stored, Upload};
use lacuna_protocol::session::DIGEST;
use lacuna_protocol::version::PROTOCOL;
use lacuna_worker::Options;
use reqwest::{Method, StatusCode};
use serde_json::Value;
use tests::caller::{Answer, Caller, answer_to, connect};
use tests::golden::{Golden, model_dir};
use tests::journey::{Journey, lacuna};
use tests::model_copy::ModelCopy;
use tests::relay::Relay;
use tests::relay::fault::{Fault, Way};
use tests::workers::{RunningWorker, fleet_file, model};
use tokio::io::AsyncWriteExt;

const MODEL: &str = "sd1";
const WEIGHTS: &str = "diffusion_pytorch_model.safetensors";
/// Far more than the tiny models take.
const LARGE: u64 = 1 << 30;

/// A worker's folders, and who may what.
struct Place {
    folder: tempfile::TempDir,
    most: u64,
}

impl Place {
    fn new(most: u64) -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("tokens"), "paints\npushes push\n").unwrap();
        Self { folder, most }
    }

    fn options(&self) -> Options {
        Options {
            token_file: Some(self.folder.path().join("tokens")),
            store: Some((self.store(), self.most)),
            session_wait: Duration::from_secs(10),
            ..Options::default()
        }
    }

    fn store(&self) -> PathBuf {
        self.folder.path().join("store")
    }

    /// The files of the store, with their sizes.
    fn files(&self) -> BTreeMap<String, u64> {
        let mut files = BTreeMap::new();
        walk(&self.store(), "", &mut files);
        files.remove("/lock");
        files
    }

    async fn worker(&self) -> RunningWorker {
        RunningWorker::of_store(&self.options()).await
    }

    /// A fleet of the worker at `url`, as whoever shows `token` has it.
    fn fleet(&self, url: &str, token: &str) -> PathBuf {
        let folder = self.folder.path().join(token);
        std::fs::create_dir_all(&folder).unwrap();
        fleet_file(&folder, &[(url, Some(token))])
    }
}

fn walk(dir: &Path, name: &str, files: &mut BTreeMap<String, u64>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        let name = format!("{name}/{}", entry.file_name().to_str().unwrap());
        match entry.file_type().unwrap().is_dir() {
            true => walk(&entry.path(), &name, files),
            false => drop(files.insert(name, entry.metadata().unwrap().len())),
        }
    }
}

fn code(answer: &Answer) -> (u16, String) {
    let value: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
    let code = value["code"].as_str().unwrap_or_default();
    (answer.status.as_u16(), code.to_owned())
}

/// The tiny model's files, as they are announced, and as they are.
fn files(model: &Path) -> Vec<(FileSize, Vec<u8>)> {
    let file = |name: &str| {
        let bytes = std::fs::read(model.join("unet").join(name)).unwrap();
        let size = FileSize {
            name: name.to_owned(),
            bytes: bytes.len() as u64,
        };
        (size, bytes)
    };
    vec![file("config.json"), file(WEIGHTS)]
}

async fn announce(caller: &Caller, digest: &str, files: Vec<FileSize>) -> Answer {
    let path = format!("v1/models/{digest}");
    let request = caller.request(Method::POST, &path);
    Caller::send(request.json(&Announcement { files })).await
}

async fn append(caller: &Caller, digest: &str, file: &str, at: u64, body: &[u8]) -> Answer {
    let path = format!("v1/models/{digest}/{file}/{at}");
    let request = caller.request(Method::POST, &path).body(body.to_vec());
    Caller::send(request).await
}

async fn finish(caller: &Caller, digest: &str) -> Answer {
    let path = format!("v1/models/{digest}/finish");
    Caller::send(caller.request(Method::POST, &path)).await
}

async fn stored(caller: &Caller) -> Stored {
    serde_json::from_slice(&caller.get("v1/models").await.body).unwrap()
}

/// Pushes a model as `lacuna` does.
async fn push(model: &Path, fleet: &Path) -> Pushed {
    let fleet = FleetConfig::from_file(fleet).unwrap();
    let package = Package::open(&ModelFiles::of(model)).unwrap();
    package.push(&fleet.workers[0], |_| {}).await.unwrap()
}

/// As `lacuna models` is asked.
async fn models(words: &[&str], fleet: &Path) -> Result<(), String> {
    let fleet = ["--fleet", fleet.to_str().unwrap()];
    lacuna([&["models"], words, &fleet].concat()).await
}

/// A model whose U-Net is another: weights are told apart with what they are computed by.
fn another(epsilon: f64) -> ModelCopy {
    let copy = ModelCopy::of(MODEL);
    copy.set("unet/config.json", "norm_eps", serde_json::json!(epsilon));
    copy
}

fn digest_of(model: &Path) -> String {
    Package::open(&ModelFiles::of(model)).unwrap().digest
}

/// Of a model in one file the U-Net alone leaves, and is there what it is in a folder.
#[tokio::test(flavor = "multi_thread")]
async fn of_one_file_the_unet_is_pushed() {
    let place = Place::new(LARGE);
    let worker = place.worker().await;
    let pushes = place.fleet(&worker.url, "pushes");
    let all = Path::new(env!("CARGO_MANIFEST_DIR")).join("goldens/one-file/sd1.safetensors");
    let config = model_dir(MODEL);
    let words = ["push", "--model", all.to_str().unwrap()];
    let config_words = ["--model-config", config.to_str().unwrap()];
    models(&[&words[..], &config_words].concat(), &pushes)
        .await
        .unwrap();
    let digest = model(MODEL).digest().to_owned();
    let files = place.files();
    let sent = &files[&format!("/models/{digest}/original.safetensors")];
    let config_sent = &files[&format!("/models/{digest}/config.json")];
    assert_eq!(files.len(), 2);
    // What is sent are the tensors of the U-Net, whose numbers are as many as in the folder, and a header.
    let folder = std::fs::metadata(config.join("unet").join(WEIGHTS)).unwrap();
    assert!(
        sent.abs_diff(folder.len()) < 32 << 10,
        "{sent} {}",
        folder.len()
    );
    assert!(*sent < std::fs::metadata(&all).unwrap().len() && *config_sent > 0);

    let journey = Journey::golden(&Golden::load(MODEL))
        .with("--steps", "2")
        .with("--model", &all)
        .with("--model-config", &config);
    let home = journey
        .clone()
        .with("--scheme", "local")
        .go()
        .await
        .unwrap();
    let over = journey
        .with("--scheme", "resident")
        .with("--fleet", &pushes);
    assert_eq!(over.go().await.unwrap().latents(), home.latents());
    // Who has the folder has the same.
    assert_eq!(push(&config, &pushes).await, Pushed::Held);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pushed_model_makes_the_picture_of_one_that_was_given() {
    let place = Place::new(LARGE);
    let worker = place.worker().await;
    let paints = place.fleet(&worker.url, "paints");
    let dir = model_dir(MODEL);
    let digest = model(MODEL).digest().to_owned();
    let journey = Journey::golden(&Golden::load(MODEL))
        .with("--steps", "2")
        .with("--scheme", "resident");
    let given = RunningWorker::start(MODEL, &Options::default()).await;
    let fleet = fleet_file(place.folder.path(), &[(&given.url, None)]);
    let wanted = journey.clone().with("--fleet", fleet).go().await.unwrap();
    let wanted = wanted.latents();

    // Before it is there the worker is well, and nobody paints with it.
    let workers = ["workers", "--fleet", paints.to_str().unwrap()];
    lacuna(workers).await.unwrap();
    let wants = [&workers[..], &["--model", dir.to_str().unwrap()]].concat();
    assert!(lacuna(wants).await.is_err());
    let here = journey.with("--fleet", &paints);
    let refused = here.go().await.err().unwrap();
    assert!(
        refused.contains("holds the model none") && refused.contains("models push"),
        "{refused}"
    );

    // The connection breaks in the middle of a file.
    let caller = Caller::new(&worker).with_token("pushes");
    let all = files(&dir);
    let sizes: Vec<FileSize> = all.iter().map(|(size, _)| size.clone()).collect();
    let begun = announce(&caller, &digest, sizes.clone()).await;
    let begun: Upload = serde_json::from_slice(&begun.body).unwrap();
    assert!(!begun.held && begun.files.iter().all(|file| file.bytes == 0));
    let (weights, half) = (&all[1].1, all[1].1.len() / 2);
    let mut stream = connect(&worker).await;
    let head = head(&format!("{digest}/{WEIGHTS}/0"), "pushes", weights.len());
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(&weights[..half]).await.unwrap();
    drop(stream);
    let there = async {
        loop {
            let upload = announce(&caller, &digest, sizes.clone()).await;
            let upload: Upload = serde_json::from_slice(&upload.body).unwrap();
            match upload.files[1].bytes {
                0 => tokio::time::sleep(Duration::from_millis(20)).await,
                there => return there,
            }
        }
    };
    let there = tokio::time::timeout(Duration::from_secs(20), there).await;
    assert_eq!(there.unwrap(), half as u64);
    // It is gone on with after the worker, too.
    worker.ended_now().await;
    let worker = place.worker().await;
    let (pushes, paints) = (
        place.fleet(&worker.url, "pushes"),
        place.fleet(&worker.url, "paints"),
    );
    assert_eq!(
        stored(&Caller::new(&worker).with_token("paints"))
            .await
            .unfinished,
        std::slice::from_ref(&digest)
    );
    let left = sizes.iter().map(|file| file.bytes).sum::<u64>() - half as u64;
    assert_eq!(push(&dir, &pushes).await, Pushed::Sent(left));
    assert_eq!(push(&dir, &pushes).await, Pushed::Held);
    let words = ["push", "--model", dir.to_str().unwrap()];
    models(&words, &pushes).await.unwrap();

    // For its owner alone, and nothing beside.
    let kept = [
        (format!("/models/{digest}/config.json"), sizes[0].bytes),
        (format!("/models/{digest}/{WEIGHTS}"), sizes[1].bytes),
    ];
    assert_eq!(place.files(), BTreeMap::from(kept.clone()));
    for (name, _) in &kept {
        let path = place.store().join(&name[1..]);
        let mode = std::fs::metadata(path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{name}");
    }

    let here = here.with("--fleet", &paints);
    assert_eq!(here.go().await.unwrap().latents(), wanted);
    // After a restart it is there, and is loaded again.
    worker.ended_now().await;
    let worker = place.worker().await;
    let paints = place.fleet(&worker.url, "paints");
    let here = here.with("--fleet", &paints);
    assert_eq!(here.go().await.unwrap().latents(), wanted);

    worker.is_left().await;
    models(&["list"], &paints).await.unwrap();
    let error = models(&["rm", &digest[..6]], &paints).await.unwrap_err();
    assert!(error.contains("1 of 1 workers failed"), "{error}");
    let pushes = place.fleet(&worker.url, "pushes");
    models(&["rm", &digest[..6]], &pushes).await.unwrap();
    assert_eq!(place.files(), BTreeMap::new());
    assert!(here.go().await.is_err());
    let error = models(&["rm", &digest[..6]], &pushes).await.unwrap_err();
    assert!(error.contains("none of the models"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_piece_that_was_changed_on_the_way_is_sent_again_by_itself() {
    let place = Place::new(LARGE);
    let worker = place.worker().await;
    let dir = model_dir(MODEL);
    let digest = model(MODEL).digest().to_owned();
    let all = files(&dir);
    let sizes: Vec<FileSize> = all.iter().map(|(size, _)| size.clone()).collect();
    // Nothing of it is there.
    let caller = Caller::new(&worker).with_token("pushes");
    announce(&caller, &digest, sizes.clone()).await;
    let path = format!("v1/models/{digest}/{WEIGHTS}/0");
    let other = blake3::hash(b"another").to_hex();
    let request = caller.request(Method::POST, &path);
    let request = request.header(DIGEST, other.as_str());
    let answer = Caller::send(request.body(all[1].1.clone())).await;
    assert_eq!(code(&answer), (400, "damaged".into()));
    let upload = announce(&caller, &digest, sizes.clone()).await;
    let upload: Upload = serde_json::from_slice(&upload.body).unwrap();
    assert_eq!(upload.files[1].bytes, 0);

    // A bit of the weights, which are the third request.
    let flip = Fault::Flip {
        way: Way::Up,
        bit: 123_456,
    };
    let relay = Relay::start(&worker.url, [Duration::ZERO; 2], move |request| {
        (request.connection == 0 && request.message == 2).then_some(flip)
    });
    let whole = sizes.iter().map(|file| file.bytes).sum();
    let fleet = place.fleet(&relay.url, "pushes");
    assert_eq!(push(&dir, &fleet).await, Pushed::Sent(whole));
    assert_eq!(relay.faults(), 1);
    assert_eq!(stored(&caller).await.models.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn shards_of_a_variant_are_the_same_model() {
    let place = Place::new(LARGE);
    let worker = place.worker().await;
    let copy = ModelCopy::of(MODEL);
    copy.shard("unet", "diffusion_pytorch_model", 3).rename(
        "unet/diffusion_pytorch_model.safetensors.index.json",
        "unet/diffusion_pytorch_model.safetensors.index.fp16.json",
    );
    let fleet = place.fleet(&worker.url, "pushes");
    let dir = copy.path().to_str().unwrap();
    let words = ["push", "--model", dir, "--variant", "fp16"];
    models(&words, &fleet).await.unwrap();
    let caller = Caller::new(&worker).with_token("paints");
    assert_eq!(caller.info().await.models[0].digest, model(MODEL).digest());
    caller.open().await;
    let error = models(&["push", "--model", dir, "--variant", "none"], &fleet).await;
    assert!(error.unwrap_err().contains("--variant none"));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_what_was_announced_is_refused_and_nothing_is_left() {
    let place = Place::new(LARGE);
    let worker = place.worker().await;
    let caller = Caller::new(&worker).with_token("pushes");
    let good = files(&model_dir(MODEL));
    let wrong = "0f".repeat(32);
    let digest = model(MODEL).digest().to_owned();
    let changed = |file: usize, change: &dyn Fn(&mut Vec<u8>)| {
        let mut files = good.clone();
        change(&mut files[file].1);
        files
    };
    let mut stray = good.clone();
    stray.push((
        FileSize {
            name: "stray.safetensors".into(),
            bytes: 3,
        },
        b"abc".to_vec(),
    ));
    for (digest, files, told) in [
        (&wrong, good.clone(), digest.as_str()),
        (
            &digest,
            changed(1, &|bytes| *bytes.last_mut().unwrap() ^= 1),
            "it is the model",
        ),
        (&digest, changed(1, &|bytes| bytes[7] = 1), "a header of"),
        (&digest, changed(1, &|bytes| bytes[20] ^= 0x40), "kept"),
        (&digest, changed(0, &|bytes| bytes[0] = b'x'), "JSON"),
        (&digest, stray, "stray.safetensors"),
    ] {
        let sizes = files.iter().map(|(size, _)| size.clone()).collect();
        assert_eq!(
            announce(&caller, digest, sizes).await.status,
            StatusCode::OK
        );
        for (size, bytes) in &files {
            let sent = append(&caller, digest, &size.name, 0, bytes).await;
            assert_eq!(sent.status, StatusCode::OK);
        }
        let refused = finish(&caller, digest).await;
        assert_eq!(code(&refused), (422, "refused".into()), "{told}");
        let error = refused.refusal(422);
        assert!(error.contains(told), "{told}: {error}");
        assert_eq!(place.files(), BTreeMap::new(), "{told}");
        let stored = stored(&caller).await;
        assert_eq!(
            (stored.bytes, stored.models.len(), stored.unfinished.len()),
            (0, 0, 0)
        );
        assert_eq!(code(&finish(&caller, digest).await), (404, "upload".into()));
    }
}

/// The header of a request to `v1/models/PATH`, whose body is of so many bytes.
fn head(path: &str, token: &str, bytes: usize) -> String {
    format!(
        "POST /v1/models/{path} HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {token}\r\nContent-Length: {bytes}\r\n\r\n"
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_is_read_of_nobody_who_may_not_push() {
    let place = Place::new(LARGE);
    let worker = place.worker().await;
    let digest = "0f".repeat(32);
    let file = format!("{digest}/{WEIGHTS}/0");
    for (path, token, status, code) in [
        (&digest, "strangers", 401, "token"),
        (&digest, "paints", 403, "right"),
        (&file, "paints", 403, "right"),
        (&file, "pushes", 404, "upload"),
        (
            &format!("{digest}/..%2f{WEIGHTS}/0"),
            "pushes",
            422,
            "invalid",
        ),
        (&format!("..%2f/{WEIGHTS}/0"), "pushes", 422, "invalid"),
    ] {
        let answer = answer_to(&worker, &head(path, token, 1000)).await;
        let told = answer.starts_with(&format!("HTTP/1.1 {status} "));
        assert!(
            told && answer.contains(&format!("\"code\":\"{code}\"")),
            "{path}: {answer}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn only_who_may_pushes_or_removes() {
    let place = Place::new(LARGE);
    let worker = place.worker().await;
    let digest = model(MODEL).digest().to_owned();
    let dir = model_dir(MODEL);
    let fleet = place.fleet(&worker.url, "pushes");
    let bare = Caller::new(&worker).with_token("paints");
    let none: Vec<FileSize> = Vec::new();
    let delete = bare.request(Method::DELETE, &format!("v1/models/{digest}"));
    let forbidden = (403, "right".to_owned());
    assert_eq!(
        code(&announce(&bare, &digest, none.clone()).await),
        forbidden
    );
    assert_eq!(
        code(&append(&bare, &digest, WEIGHTS, 0, b"x").await),
        forbidden
    );
    assert_eq!(code(&finish(&bare, &digest).await), forbidden);
    assert_eq!(code(&Caller::send(delete).await), forbidden);
    let painter = place.fleet(&worker.url, "paints");
    let words = ["push", "--model", dir.to_str().unwrap()];
    let error = models(&words, &painter).await.unwrap_err();
    assert!(error.contains("1 of 1 workers failed"), "{error}");
    assert_eq!(place.files(), BTreeMap::new());
    assert_eq!(
        push(&dir, &fleet).await,
        Pushed::Sent(Package::open(&ModelFiles::of(&dir)).unwrap().bytes())
    );
    // Who shows none may nothing at all.
    let stranger = Caller::new(&worker);
    assert_eq!(
        code(&announce(&stranger, &digest, none).await),
        (401, "token".into())
    );

    // One that asks for no token lets nobody push.
    let open = Place::new(LARGE);
    let options = Options {
        token_file: None,
        ..open.options()
    };
    let worker = RunningWorker::of_store(&options).await;
    let anybody = Caller::new(&worker);
    assert_eq!(code(&finish(&anybody, &digest).await), forbidden);
    // One without a store takes nothing, and says so.
    let worker = RunningWorker::start(MODEL, &Options::default()).await;
    let caller = Caller::new(&worker);
    assert_eq!(code(&finish(&caller, &digest).await), (404, "store".into()));
    assert_eq!(code(&caller.get("v1/models").await), (404, "store".into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn names_offsets_and_sizes_are_held_to_what_was_announced() {
    let place = Place::new(100_000_000);
    let worker = place.worker().await;
    let caller = Caller::new(&worker).with_token("pushes");
    let digest = "0f".repeat(32);
    let file = |name: &str, bytes| FileSize {
        name: name.into(),
        bytes,
    };
    let with = |name: &str, bytes| vec![file("config.json", 10), file(name, bytes)];
    let invalid = (422, "invalid".to_owned());
    for name in [
        "../x.safetensors",
        "a/b.safetensors",
        "/x.safetensors",
        "x.bin",
        "announced",
    ] {
        let answer = announce(&caller, &digest, with(name, 10)).await;
        assert_eq!(code(&answer), invalid, "{name}");
    }
    assert_eq!(
        code(&announce(&caller, "..%2f..", with(WEIGHTS, 10)).await),
        invalid
    );
    assert_eq!(
        code(&announce(&caller, &"0F".repeat(32), with(WEIGHTS, 10)).await),
        invalid
    );
    let twice = announce(&caller, &digest, with("config.json", 10)).await;
    assert_eq!(code(&twice), invalid);
    let large = announce(&caller, &digest, with(WEIGHTS, 100_000_000)).await;
    assert_eq!(code(&large), (507, "full".into()));
    let huge = announce(&caller, &digest, with(WEIGHTS, u64::MAX)).await;
    assert_eq!(code(&huge), invalid);
    assert_eq!(place.files(), BTreeMap::new());

    let begun = announce(&caller, &digest, with(WEIGHTS, 99_000_000)).await;
    assert_eq!(begun.status, StatusCode::OK);
    // It takes its room from the beginning on.
    assert_eq!(stored(&caller).await.bytes, 99_000_010);
    let other = announce(&caller, &"1f".repeat(32), with(WEIGHTS, 99_000_000)).await;
    assert_eq!(code(&other), (507, "full".into()));
    for name in ["..%2fx.safetensors", "other.json"] {
        let answer = append(&caller, &digest, name, 0, b"x").await;
        assert_eq!(code(&answer), invalid, "{name}");
    }
    let unknown = append(&caller, &digest, "other.safetensors", 0, b"x").await;
    assert_eq!(code(&unknown), (404, "upload".into()));
    let gap = append(&caller, &digest, "config.json", 1, b"x").await;
    assert_eq!(code(&gap), (409, "offset".into()));
    let far = append(&caller, &digest, "config.json", u64::MAX, b"x").await;
    assert_eq!(code(&far), (409, "offset".into()));
    let long = append(&caller, &digest, "config.json", 0, &[b'x'; 11]).await;
    assert_eq!(code(&long), invalid);
    let piece = answer_to(
        &worker,
        &head(&format!("{digest}/{WEIGHTS}/0"), "pushes", (16 << 20) + 1),
    )
    .await;
    assert!(piece.contains("\"code\":\"too_long\""), "{piece}");
    // What comes again is let pass, also where it goes on.
    for (at, body, there) in [(0, "abcd", 4), (0, "abcd", 4), (2, "cdefgh", 8), (8, "", 8)] {
        let answer = append(&caller, &digest, "config.json", at, body.as_bytes()).await;
        let received: Value = serde_json::from_slice(&answer.body).unwrap();
        assert_eq!(received["bytes"], there, "{at}");
    }
    let written = place
        .store()
        .join("uploads")
        .join(&digest)
        .join("config.json");
    assert_eq!(std::fs::read(written).unwrap(), b"abcdefgh");
    assert_eq!(
        code(&finish(&caller, &digest).await),
        (409, "unfinished".into())
    );
    // It can be given up.
    let delete = caller.request(Method::DELETE, &format!("v1/models/{digest}"));
    assert_eq!(Caller::send(delete).await.status, StatusCode::NO_CONTENT);
    assert_eq!(
        (place.files(), stored(&caller).await.bytes),
        (BTreeMap::new(), 0)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn whichever_was_not_used_for_longest_makes_room() {
    let [first, second, third, fourth] = [0.001, 0.002, 0.003, 0.004].map(another);
    let bytes = Package::open(&ModelFiles::of(first.path()))
        .unwrap()
        .bytes();
    let place = Place::new(2 * bytes + bytes / 2);
    let worker = place.worker().await;
    let fleet = place.fleet(&worker.url, "pushes");
    let digests = [&first, &second, &third, &fourth].map(|copy| digest_of(copy.path()));
    let caller = Caller::new(&worker).with_token("paints");
    let kept = async || {
        let kept = stored(&caller).await.models;
        let has = |digest: &String| kept.iter().any(|kept| kept.digest == *digest);
        digests.each_ref().map(has)
    };
    for copy in [&first, &second] {
        assert_eq!(push(copy.path(), &fleet).await, Pushed::Sent(bytes));
    }
    assert_eq!(kept().await, [true, true, false, false]);
    let opened = caller.try_open(PROTOCOL, &digests[0]).await;
    assert_eq!(opened.status, StatusCode::CREATED);
    let session: Value = serde_json::from_slice(&opened.body).unwrap();
    push(third.path(), &fleet).await;
    assert_eq!(kept().await, [true, false, true, false]);
    // The first was used before the third came; but somebody uses it still.
    push(fourth.path(), &fleet).await;
    assert_eq!(kept().await, [true, false, false, true]);
    let rm = ["rm", &digests[0]];
    assert!(models(&rm, &fleet).await.is_err());
    caller.close(session["session"].as_str().unwrap()).await;
    models(&rm, &fleet).await.unwrap();
    assert_eq!(kept().await, [false, false, false, true]);
    let opened = caller.try_open(PROTOCOL, &digests[0]).await;
    assert_eq!(code(&opened), (404, "model".into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_store_holds_is_counted() {
    let place = Place::new(LARGE);
    let worker = place.worker().await;
    let (listener, url) = tests::workers::listen().await;
    let known = std::sync::Arc::new(std::sync::OnceLock::new());
    tokio::spawn(lacuna_worker::watch(listener, known.clone()));
    known.set(worker.service.clone()).ok().unwrap();
    let caller = Caller::new(&worker).with_token("paints");
    let counted = async || {
        let http = lacuna_orchestrator::fleet::line::http_client();
        let http = http.no_proxy().build().unwrap();
        let answer = http.get(format!("{url}metrics")).send().await.unwrap();
        let text = answer.text().await.unwrap();
        let of = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name));
            line.unwrap().trim().parse::<u64>().unwrap()
        };
        [of("lacuna_models "), of("lacuna_store_bytes ")]
    };
    assert_eq!(counted().await, [0, 0]);
    let fleet = place.fleet(&worker.url, "pushes");
    push(&model_dir(MODEL), &fleet).await;
    let bytes = stored(&caller).await.bytes;
    assert!(bytes > 900_000, "{bytes}");
    assert_eq!(counted().await, [1, bytes]);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_model_of_the_store_is_loaded_at_a_time() {
    let place = Place::new(LARGE);
    let options = Options {
        session_wait: Duration::from_millis(500),
        ..place.options()
    };
    let given = RunningWorker::of(model(MODEL), &options).await;
    let fleet = place.fleet(&given.url, "pushes");
    // What it was started with is there.
    assert_eq!(push(&model_dir(MODEL), &fleet).await, Pushed::Held);
    let [first, second] = [0.001, 0.002].map(another);
    for copy in [&first, &second] {
        push(copy.path(), &fleet).await;
    }
    let caller = Caller::new(&given).with_token("paints");
    let open = async |digest: &str| {
        // While it loads one is told to ask again.
        loop {
            let opened = caller.try_open(PROTOCOL, digest).await;
            if code(&opened) != (503, "loading".into()) {
                return opened;
            }
        }
    };
    let [first, second] = [first, second].map(|copy| digest_of(copy.path()));
    let opened = open(&first).await;
    let session: Value = serde_json::from_slice(&opened.body).unwrap();
    assert_eq!(code(&open(&second).await), (503, "busy".into()));
    // The one that it was started with is not in the way.
    assert_eq!(
        open(model(MODEL).digest()).await.status,
        StatusCode::CREATED
    );
    caller.close(session["session"].as_str().unwrap()).await;
    assert_eq!(open(&second).await.status, StatusCode::CREATED);
    assert_eq!(code(&open(&first).await), (503, "busy".into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_older_worker_takes_no_models_and_one_of_two_that_fails_is_told() {
    let place = Place::new(LARGE);
    let worker = place.worker().await;
    let older = tests::workers::serve_routes(axum::Router::new()).await;
    let workers = [(worker.url.as_str(), Some("pushes")), (&older, None)];
    let fleet = fleet_file(place.folder.path(), &workers);
    let dir = model_dir(MODEL);
    let words = ["push", "--model", dir.to_str().unwrap()];
    let error = models(&words, &fleet).await.unwrap_err();
    assert!(error.contains("1 of 2 workers failed"), "{error}");
    let config = FleetConfig::from_file(&fleet).unwrap();
    let listed = store::list_all(&config).await;
    assert_eq!(
        listed[0].as_ref().unwrap().models[0].digest,
        model(MODEL).digest()
    );
    let error = listed[1].as_ref().unwrap_err().to_string();
    assert!(error.contains("takes no models"), "{error}");
}
