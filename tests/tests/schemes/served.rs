//! The U-Net as a service on loopback, over real HTTP: what it computes is what the library does, and who may not ask gets nothing.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use lacuna_model::device::OpenDevice;
use lacuna_model::host::OnDevice;
use lacuna_model::unet::UNetConfig;
use lacuna_model::weights::{Checkpoint, Library, Stored};
use lacuna_model::whole::{AddedConditioning, Conditioning, Guidance, Whole};
use lacuna_orchestrator::fleet::config::FleetConfig;
use lacuna_orchestrator::fleet::line::http_client;
use lacuna_orchestrator::generator::denoiser::Denoiser;
use lacuna_orchestrator::generator::failover::OnLoss;
use lacuna_orchestrator::noise::TorchRng;
use lacuna_orchestrator::output::console::Console;
use lacuna_orchestrator::policy::Policy;
use lacuna_orchestrator::schemes::Setting;
use lacuna_orchestrator::unet_source::UNetSource;
use lacuna_served::bounds::Bounds;
use lacuna_served::door::Door;
use lacuna_served::facts;
use lacuna_served::message::{Call, Opened, Opening, Predicted, tensors};
use lacuna_served::place::{Places, Terms};
use lacuna_served::service::Service;
use lacuna_wire::{HostTensor, Message};
use lacuna_worker::Options;
use reqwest::{Client, Response, StatusCode};
use serde_json::Value;
use tests::golden::model_dir;
use tests::relay::Relay;
use tests::relay::fault::Fault;
use tests::scheme::scheme;
use tests::workers::{RunningWorker, fleet_file};
use tokio::sync::oneshot;
use tokio::task::{JoinHandle, spawn_blocking};

const SIDE: usize = 16;
const TOKENS: usize = 7;
/// The largest latents.
const MOST: [usize; 3] = [4, 32, 32];
/// Longer than any test.
const IDLE: Duration = Duration::from_secs(600);

fn noise(seed: u64, shape: &[usize]) -> HostTensor {
    let values = TorchRng::new(seed).randn(shape.iter().product());
    HostTensor::new(shape, values).unwrap()
}

struct Model {
    name: &'static str,
    config: UNetConfig,
    source: Arc<UNetSource>,
}

impl Model {
    fn open(name: &'static str) -> Self {
        let folder = model_dir(name).join("unet");
        let config = UNetConfig::from_file(&folder.join("config.json")).unwrap();
        let files = Checkpoint::open(&folder, Library::Diffusers, None).unwrap();
        let stored = Stored::new(config.build(), files).unwrap();
        let source = UNetSource::of_files(stored, &OpenDevice::cpu().device).unwrap();
        Self {
            name,
            config,
            source: Arc::new(source),
        }
    }

    /// What the U-Net is told of a picture of `batch` entries.
    fn told(&self, batch: usize) -> Vec<(&'static str, HostTensor)> {
        let unet = self.source.layers();
        let context = noise(1, &[batch, TOKENS, unet.context_width]);
        let mut told = vec![(tensors::CONTEXT, context)];
        if let Some(added) = &unet.time.added {
            let pooled = added.linear_1.d_in - 6 * added.channels;
            let sizes = (0..6 * batch).map(|i| (8 * i) as f32).collect();
            told.push((tensors::POOLED, noise(3, &[batch, pooled])));
            told.push((tensors::SIZES, HostTensor::new([batch, 6], sizes).unwrap()));
        }
        if let Some(guidance) = &unet.time.guidance {
            let of_entry = noise(4, &[1, guidance.d_in]);
            let all = HostTensor::join_batch(&vec![of_entry; batch]).unwrap();
            told.push((tensors::GUIDANCE, all));
        }
        told
    }

    fn sample(&self, batch: usize, seed: u64) -> HostTensor {
        noise(seed, &[batch, self.source.layers().in_channels, SIDE, SIDE])
    }

    /// What the library computes by itself.
    async fn here(&self, batch: usize, seed: u64, timestep: f64) -> HostTensor {
        let device = OpenDevice::cpu().device;
        let mut told: HashMap<_, _> = self.told(batch).into_iter().collect();
        let context = told.remove(tensors::CONTEXT).unwrap();
        let sizes = told.remove(tensors::SIZES);
        let added = told
            .remove(tensors::POOLED)
            .map(|pooled| AddedConditioning {
                pooled: pooled.into_device(&device).unwrap(),
                sizes: sizes.unwrap().data.as_chunks::<6>().0.to_vec(),
            });
        let guidance = told.remove(tensors::GUIDANCE);
        let conditioning = Conditioning {
            context: context.into_device(&device).unwrap(),
            added,
            guidance: guidance.map(|all| {
                let width = all.shape[1];
                Guidance::Embedding(all.data[..width].to_vec())
            }),
        };
        let (source, sample) = (self.source.clone(), self.sample(batch, seed));
        let compute = move || {
            let mut whole = Whole::new(source.load_all().unwrap(), conditioning);
            let sample = sample.into_device(&device).unwrap();
            let output = source.layers().forward(&mut whole, &sample, timestep);
            HostTensor::from_device(output.unwrap()).unwrap()
        };
        spawn_blocking(compute).await.unwrap()
    }
}

/// What is served, and a client of it.
struct Served {
    service: Service,
    http: Client,
    url: String,
    token: String,
    stop: Option<oneshot::Sender<()>>,
    serving: JoinHandle<()>,
    _folder: tempfile::TempDir,
}

/// How it is served.
struct How {
    scheme: &'static str,
    idle: Duration,
    on_loss: OnLoss,
    policy: Option<Policy>,
}

impl Default for How {
    fn default() -> Self {
        Self {
            scheme: "resident",
            idle: IDLE,
            on_loss: OnLoss::Home,
            policy: None,
        }
    }
}

impl Served {
    async fn start(model: &Model, urls: &[&str], how: How) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let unet = model.source.layers();
        let workers: Vec<_> = urls.iter().map(|url| (*url, None)).collect();
        let fleet = (!urls.is_empty())
            .then(|| FleetConfig::from_file(&fleet_file(folder.path(), &workers)).unwrap());
        let setting = Setting::new(scheme(how.scheme, &[]), unet, [2, SIDE, SIDE], TOKENS);
        let terms = how.policy.clone().map(|policy| {
            let fleet = fleet.clone().unwrap();
            let compute = lacuna_orchestrator::arguments::speed::ComputeArguments {
                user_gflops: Some(100.0),
                worker_gflops: Some(1000.0),
                measure: false,
            };
            let link = lacuna_orchestrator::arguments::speed::SpeedArguments {
                link: None,
                uplink_mbps: None,
                downlink_mbps: None,
                rtt_ms: None,
            };
            Terms {
                policy,
                speeds: compute.given(&link, &fleet).unwrap(),
                fleet,
                adapted: false,
                insecure: false,
            }
        });
        let denoiser = Denoiser::new(model.source.clone(), setting.clone(), None, fleet);
        let denoiser = denoiser.under(how.policy).on_loss(how.on_loss);
        // Lines would go between those of the tests.
        let console = Console::new(true);
        let places = Places::new(model.source.clone(), setting, denoiser, terms, console);
        let config = facts::config(Some(&model_dir(model.name)), &model.config, unet);
        let service = Service::new(config, Bounds::new(unet, MOST), places, how.idle);
        let path = folder.path().join("unet.json");
        let mut door = Door::open(0, &path).await.unwrap();
        let told: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        let serving = service.clone();
        let serving = tokio::spawn(async move {
            let stopped = async move {
                let _ = stopped.await;
            };
            serving.serve(&mut door, stopped).await.unwrap();
        });
        Self {
            service,
            http: http_client().no_proxy().build().unwrap(),
            url: told["url"].as_str().unwrap().to_owned(),
            token: told["token"].as_str().unwrap().to_owned(),
            stop: Some(stop),
            serving,
            _folder: folder,
        }
    }

    async fn post(&self, path: &str, body: Vec<u8>) -> Response {
        let request = self.http.post(format!("{}{path}", self.url));
        let request = request.bearer_auth(&self.token).body(body);
        request.send().await.unwrap()
    }

    /// Opens a picture of so many entries.
    async fn open(&self, model: &Model, batch: usize) -> Result<Opened, Value> {
        let header = Opening {
            latents: [batch, SIDE, SIDE],
        };
        let answer = self
            .post("/v1/pictures", message(header, model.told(batch)))
            .await;
        match answer.status() {
            StatusCode::CREATED => Ok(answer.json().await.unwrap()),
            _ => Err(answer.json().await.unwrap()),
        }
    }

    async fn call(
        &self,
        id: &str,
        sample: HostTensor,
        timestep: f64,
    ) -> Result<(HostTensor, Predicted), Value> {
        let body = message(Call { timestep }, vec![(tensors::SAMPLE, sample)]);
        let answer = self.post(&format!("/v1/pictures/{id}/calls"), body).await;
        if answer.status() != StatusCode::OK {
            return Err(answer.json().await.unwrap());
        }
        let body = answer.bytes().await.unwrap();
        let mut message = Message::<Predicted>::decode(&body).unwrap();
        let output = message.take(tensors::SAMPLE).unwrap();
        Ok((output.into_tensor("output").unwrap(), message.header))
    }

    async fn close(&self, id: &str) {
        let request = self.http.delete(format!("{}/v1/pictures/{id}", self.url));
        let answer = request.bearer_auth(&self.token).send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::NO_CONTENT);
    }

    /// Tells it to stop, and waits for that.
    async fn ended(mut self) {
        drop(self.stop.take());
        let ended = tokio::time::timeout(Duration::from_secs(20), self.serving).await;
        ended.expect("it ends").unwrap();
    }
}

fn message<H: serde::Serialize>(header: H, all: Vec<(&str, HostTensor)>) -> Vec<u8> {
    let tensors = all.into_iter();
    let tensors = tensors.map(|(name, tensor)| (name.to_owned(), tensor.into()));
    let message = Message {
        header,
        tensors: tensors.collect(),
    };
    message.encode().unwrap()
}

async fn workers(name: &str) -> [RunningWorker; 2] {
    let options = Options {
        max_latents: MOST,
        ..Options::default()
    };
    [
        RunningWorker::start(name, &options).await,
        RunningWorker::start(name, &options).await,
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_is_the_librarys_own_to_the_bit() {
    // Of each kind of model, guided and not, and of several pictures at a time.
    for (name, batches) in [
        ("sd2", &[1, 2, 3, 4][..]),
        ("xl", &[2]),
        ("consistency", &[1, 2]),
    ] {
        let model = Model::open(name);
        let [one, other] = workers(name).await;
        let served = Served::start(&model, &[&one.url, &other.url], How::default()).await;
        for batch in batches {
            let opened = served.open(&model, *batch).await.unwrap();
            let mut up = 0;
            for (seed, timestep) in [(5, 801.0), (6, 400.5)] {
                let sample = model.sample(*batch, seed);
                let (output, predicted) = served.call(&opened.id, sample, timestep).await.unwrap();
                let here = model.here(*batch, seed, timestep).await;
                assert!(output == here, "{name}, {batch} entries at {timestep}");
                assert!(predicted.bytes_up > up && predicted.told.is_empty());
                up = predicted.bytes_up;
            }
            served.close(&opened.id).await;
            one.is_left().await;
        }
        let report = served.service.report();
        let pictures: Vec<_> = report
            .ledger
            .providers
            .values()
            .map(|view| view.pictures)
            .collect();
        assert_eq!(pictures, [batches.len(); 2], "{name}");
        served.ended().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn at_home_nobody_else_computes() {
    let model = Model::open("sd1");
    let how = How {
        scheme: "local",
        ..How::default()
    };
    let served = Served::start(&model, &[], how).await;
    let opened = served.open(&model, 2).await.unwrap();
    let (output, predicted) = served
        .call(&opened.id, model.sample(2, 5), 30.0)
        .await
        .unwrap();
    assert!(output == model.here(2, 5, 30.0).await);
    assert_eq!(predicted.bytes_up, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_does_not_know_the_token_or_is_a_page_gets_nothing() {
    let model = Model::open("sd2");
    let served = Served::start(
        &model,
        &[],
        How {
            scheme: "local",
            ..How::default()
        },
    )
    .await;
    let get = |path: &str| served.http.get(format!("{}{path}", served.url));
    let facts: Value = get("/v1/unet")
        .bearer_auth(&served.token)
        .send()
        .await
        .unwrap()
        .json()
        .await
        .unwrap();
    assert_eq!(facts["protocol"], 1);
    assert_eq!(facts["config"]["in_channels"], 4);
    assert_eq!(facts["config"]["_class_name"], "UNet2DConditionModel");
    for path in ["/v1/unet", "/v1/report", "/v1/pictures", "/nothing"] {
        for token in [None, Some(""), Some("wrong")] {
            let request = match token {
                Some(token) => get(path).bearer_auth(token),
                None => get(path),
            };
            let answer = request.send().await.unwrap();
            assert_eq!(answer.status(), StatusCode::UNAUTHORIZED, "{path}");
            let said: Value = answer.json().await.unwrap();
            assert_eq!(said["code"], "token");
        }
    }
    let foreign = [
        get("/v1/unet").header("origin", "https://evil.example"),
        get("/v1/unet").header("origin", "null"),
        get("/v1/unet").header("host", "evil.example"),
    ];
    for request in foreign {
        let answer = request.bearer_auth(&served.token).send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::FORBIDDEN);
        assert!(
            answer
                .headers()
                .keys()
                .all(|name| !name.as_str().starts_with("access-control"))
        );
        let said: Value = answer.json().await.unwrap();
        assert_eq!(said["code"], "foreign");
    }
    // It is on loopback alone.
    let address: SocketAddr = served.url.strip_prefix("http://").unwrap().parse().unwrap();
    assert!(address.ip().is_loopback());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_fit_is_refused_by_name_and_before_anything_is_sent() {
    let model = Model::open("xl");
    let [one, other] = workers("xl").await;
    let served = Served::start(&model, &[&one.url, &other.url], How::default()).await;
    let open = async |latents: [usize; 3], told: Vec<(&str, HostTensor)>| {
        let answer = served
            .post("/v1/pictures", message(Opening { latents }, told))
            .await;
        let status = answer.status();
        (status, answer.json::<Value>().await.unwrap())
    };
    let fine = [2, SIDE, SIDE];
    let without = |name: &str| {
        let mut told = model.told(2);
        told.retain(|(other, _)| *other != name);
        told
    };
    let with = |name: &'static str, shape: &[usize]| {
        let mut told = without(name);
        told.push((name, noise(1, shape)));
        told
    };
    let width = model.source.layers().context_width;
    for (latents, told, words) in [
        ([5, SIDE, SIDE], model.told(5), "--max-batch"),
        ([2, 33, SIDE], model.told(2), "--max-size"),
        ([2, SIDE, usize::MAX], model.told(2), "--max-size"),
        ([0, SIDE, SIDE], model.told(2), "--max-batch"),
        (
            fine,
            without(tensors::CONTEXT),
            "encoder_hidden_states is missing",
        ),
        (fine, without(tensors::POOLED), "text_embeds is missing"),
        (fine, without(tensors::SIZES), "time_ids is missing"),
        (
            fine,
            with(tensors::CONTEXT, &[2, 7, width + 1]),
            "encoder_hidden_states has shape",
        ),
        (
            fine,
            with(tensors::CONTEXT, &[1, 7, width]),
            "it must be [2, 1 to 1024",
        ),
        (
            fine,
            with(tensors::SIZES, &[2, 5]),
            "time_ids has shape [2, 5]",
        ),
        (
            fine,
            with(tensors::GUIDANCE, &[2, 4]),
            "takes no tensor \"timestep_cond\"",
        ),
    ] {
        let (status, said) = open(latents, told).await;
        assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY, "{said}");
        let text = said["error"].as_str().unwrap();
        assert!(text.contains(words), "{words:?} is not in: {text}");
    }
    let mut poisoned = model.told(2);
    poisoned[0].1.data[3] = f32::NAN;
    let (_, said) = open(fine, poisoned).await;
    assert!(
        said["error"].as_str().unwrap().contains("not finite"),
        "{said}"
    );
    // No message, and one that is longer than any.
    for body in [vec![], vec![255; 100], b"hello there, who are you".to_vec()] {
        let answer = served.post("/v1/pictures", body).await;
        assert_eq!(answer.status(), StatusCode::UNPROCESSABLE_ENTITY);
    }
    let long = served.post("/v1/pictures", vec![0; 64 << 20]).await;
    assert_eq!(long.status(), StatusCode::PAYLOAD_TOO_LARGE);
    assert_eq!(
        one.service.open_sessions() + other.service.open_sessions(),
        0
    );

    let opened = served.open(&model, 2).await.unwrap();
    let wrong = served
        .call(&opened.id, model.sample(1, 1), 1.0)
        .await
        .unwrap_err();
    assert!(
        wrong["error"]
            .as_str()
            .unwrap()
            .contains("sample has shape [1, 4, 16, 16]"),
        "{wrong}"
    );
    let wrong = served
        .call(&opened.id, model.sample(2, 1), 1e7)
        .await
        .unwrap_err();
    assert!(
        wrong["error"].as_str().unwrap().contains("timestep"),
        "{wrong}"
    );
    // It is still the same picture.
    served
        .call(&opened.id, model.sample(2, 1), 1.0)
        .await
        .unwrap();
    served.close(&opened.id).await;
    let gone = served
        .call(&opened.id, model.sample(2, 1), 1.0)
        .await
        .unwrap_err();
    assert_eq!(gone["code"], "gone");
}

#[tokio::test(flavor = "multi_thread")]
async fn pictures_end_when_nobody_calls_and_make_room() {
    let model = Model::open("sd2");
    let [one, other] = workers("sd2").await;
    let urls = [one.url.as_str(), other.url.as_str()];
    let served = Served::start(&model, &urls, How::default()).await;
    let mut ids = Vec::new();
    for _ in 0..lacuna_served::pictures::MOST + 1 {
        let opened = served.open(&model, 1).await.unwrap();
        served
            .call(&opened.id, model.sample(1, 1), 1.0)
            .await
            .unwrap();
        ids.push(opened.id);
    }
    // The first one made room for the last one.
    let gone = served
        .call(&ids[0], model.sample(1, 1), 1.0)
        .await
        .unwrap_err();
    assert_eq!(gone["code"], "gone");
    served.call(&ids[1], model.sample(1, 1), 1.0).await.unwrap();
    served.ended().await;
    one.is_left().await;

    let short = How {
        idle: Duration::from_millis(50),
        ..How::default()
    };
    let served = Served::start(&model, &urls, short).await;
    let opened = served.open(&model, 1).await.unwrap();
    one.is_left().await;
    other.is_left().await;
    let gone = served
        .call(&opened.id, model.sample(1, 1), 1.0)
        .await
        .unwrap_err();
    assert_eq!(gone["code"], "gone");
}

/// The request of the second worker that is not answered any more: in the first call.
const MIDDLE: usize = 12;

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_worker_is_told_of() {
    let model = Model::open("sd2");
    for on_loss in [OnLoss::Home, OnLoss::End] {
        let [one, other] = workers("sd2").await;
        let lost = Relay::failing(&other.url, MIDDLE, Fault::Gone);
        let how = How {
            on_loss,
            ..How::default()
        };
        let served = Served::start(&model, &[&one.url, &lost.url], how).await;
        let opened = served.open(&model, 2).await.unwrap();
        let called = served.call(&opened.id, model.sample(2, 5), 500.0).await;
        match on_loss {
            OnLoss::Home => {
                let (output, predicted) = called.unwrap();
                assert!(output == model.here(2, 5, 500.0).await);
                let told = predicted.told.join("; ");
                assert!(
                    told.contains(&lost.url) && told.contains("went on"),
                    "{told}"
                );
                // Once.
                let (_, next) = served
                    .call(&opened.id, model.sample(2, 5), 400.0)
                    .await
                    .unwrap();
                assert!(next.told.is_empty(), "{:?}", next.told);
            }
            _ => {
                let said = called.unwrap_err();
                assert_eq!(said["code"], "worker");
                assert_eq!(said["worker"], lost.url.as_str());
                assert!(
                    said["error"].as_str().unwrap().contains(&lost.url),
                    "{said}"
                );
                let gone = served.call(&opened.id, model.sample(2, 5), 400.0).await;
                assert_eq!(gone.unwrap_err()["code"], "gone");
            }
        }
        assert!(lost.faults() > 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_refuses_before_anything_is_sent() {
    let model = Model::open("sd2");
    let [one, other] = workers("sd2").await;
    let policy = Policy::open(Path::new("private")).unwrap();
    let how = How {
        policy: Some(policy),
        ..How::default()
    };
    // Two providers see half of the rows each, which is more than this policy allows.
    let served = Served::start(&model, &[&one.url, &other.url], how).await;
    let refused = served.open(&model, 2).await.unwrap_err();
    assert_eq!(refused["code"], "policy");
    assert!(
        refused["error"].as_str().unwrap().contains("max_rows"),
        "{refused}"
    );
    assert_eq!(
        one.service.open_sessions() + other.service.open_sessions(),
        0
    );
    let policy = Policy::open(Path::new("fast")).unwrap();
    let how = How {
        policy: Some(policy),
        ..How::default()
    };
    let served = Served::start(&model, &[&one.url, &other.url], how).await;
    let opened = served.open(&model, 2).await.unwrap();
    assert!(
        opened
            .seen
            .iter()
            .any(|line| line.contains("will each see")),
        "{:?}",
        opened.seen
    );
    served
        .call(&opened.id, model.sample(2, 5), 500.0)
        .await
        .unwrap();
    served.close(&opened.id).await;
}
