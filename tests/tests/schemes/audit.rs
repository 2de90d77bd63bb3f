//! `lacuna audit`: what is taken for a provider's view is what its worker was sent and computed, and the
//! command from its arguments to its files.

use std::ops::Range;
use std::path::Path;

use lacuna_instruments::audit::arrange::by_pixel;
use lacuna_instruments::audit::view::View;
use lacuna_instruments::audit::watch::{self, Place};
use lacuna_model::device::OpenDevice;
use lacuna_model::partition::{Rows, cut};
use lacuna_model::weights::Weights;
use lacuna_model::whole::Whole;
use lacuna_orchestrator::fleet::config::FleetConfig;
use lacuna_orchestrator::fleet::tap::{Heard, Tap};
use lacuna_orchestrator::pipeline::Pipeline;
use lacuna_orchestrator::schemes::{Setting, Sizes};
use lacuna_orchestrator::text::Prompt;
use lacuna_protocol::session::{AdvanceHeader, RunHeader};
use lacuna_wire::HostTensor;
use lacuna_wire::Message;
use lacuna_worker::Options;
use serde_json::Value;
use tests::golden::{model_dir, repository};
use tests::journey::{Png, lacuna};
use tests::workers::{RunningWorker, fleet_file, is_work, model, overheard_worker};
use tokio::runtime::Handle;
use tokio::task::spawn_blocking;

const NAME: &str = "sd1";
const SIDE: usize = 16;
const TIMESTEPS: [f64; 2] = [801.0, 1.0];

/// Two steps of a picture on two workers, the second of them overheard and tapped.
struct Overheard {
    /// The bodies that the worker was sent.
    bodies: Vec<axum::body::Bytes>,
    /// What the tap kept.
    heard: Heard,
    /// The prediction of each step by the whole model.
    whole: Vec<HostTensor>,
    setting: Setting,
    /// The rows of the latents that the worker computes.
    rows: Range<usize>,
    weights: Weights,
}

fn sample(seed: u64) -> HostTensor {
    let shape = [2, 4, SIDE, SIDE];
    let data = lacuna_orchestrator::noise::TorchRng::new(seed).randn(shape.iter().product());
    HostTensor::new(shape, data).unwrap()
}

async fn overhear(scheme: &str, self_attention: &str, prompt: &str) -> Overheard {
    let first = RunningWorker::start(NAME, &Options::default()).await;
    let (url, bodies) = overheard_worker(NAME).await;
    let folder = tempfile::tempdir().unwrap();
    let file = fleet_file(folder.path(), &[(&first.url, None), (&url, None)]);
    let config = FleetConfig::from_file(&file).unwrap();
    let runtime = Handle::current();
    let options = [
        ("self-attention", self_attention),
        ("workers-prompt", prompt),
        ("lanes", "false"),
    ];
    let scheme = tests::scheme::scheme(scheme, &options);
    let overheard = spawn_blocking(move || {
        let device = OpenDevice::cpu().device;
        let pipeline = Pipeline::open(&model_dir(NAME), None, &[], &device).unwrap();
        let unet = pipeline.unet();
        let weights = pipeline.source().load_all().unwrap();
        let (words, sampling) = (Prompt::new("a cat"), pipeline.sampling(1, Some(5.0)));
        let shape = pipeline.latent_shape(None, None).unwrap();
        let context = pipeline.encode(&words, &sampling, shape).unwrap();
        let [_, tokens, _] = context.context.dims();
        let setting = Setting {
            scheme,
            sizes: Sizes {
                latents: [2, SIDE, SIDE],
                levels: unet.levels(),
                tokens,
            },
            adapted: false,
        };
        let opened = setting.open(&config, pipeline.digest(), unet);
        let mut fleet = runtime.block_on(opened).unwrap();
        let tap = Tap::default();
        fleet.tap(1, &tap);
        let predict = |setting: &Setting, fleet| {
            let whole = Whole::new(weights.clone(), context.clone());
            let mut predictor = setting.predictor(unet, whole, fleet).unwrap();
            let steps = TIMESTEPS.iter().enumerate();
            let steps = steps.map(|(i, t)| predictor.predict(sample(i as u64), *t).unwrap());
            steps.collect::<Vec<_>>()
        };
        predict(&setting, Some(fleet));
        let local = setting.by(tests::scheme::scheme("local", &[]));
        let sizes = &setting.sizes;
        let rows = watch::of(&*setting.scheme)
            .unwrap()
            .rows(unet, sizes, PLACE);
        Overheard {
            bodies: (bodies.lock().unwrap().drain(..))
                .filter(|(path, _)| is_work(path))
                .map(|(_, body)| body)
                .collect(),
            heard: tap.take(),
            whole: predict(&local, None),
            rows: rows.unwrap(),
            setting,
            weights: weights.clone(),
        }
    });
    overheard.await.unwrap()
}

impl Overheard {
    fn views(self) -> Vec<View> {
        let watch = watch::of(&*self.setting.scheme).unwrap();
        let (model, calls) = (model(NAME), TIMESTEPS.len());
        let sizes = &self.setting.sizes;
        let views = watch.views(&model, &self.weights, sizes, PLACE, self.heard, calls);
        views.unwrap()
    }

    /// The worker's rows of `x`.
    fn own_rows(&self, x: &HostTensor) -> HostTensor {
        let rows = self.rows.start as isize..self.rows.end as isize;
        cut(x, Rows::OfFeature, &rows).unwrap()
    }
}

/// Of the worker that is overheard.
const PLACE: Place = Place { worker: 1, of: 2 };

const RESIDENT: [(&str, &str); 4] = [
    ("paired", "hidden"),
    ("tokens", "shared"),
    ("tiled", "hidden"),
    ("broadcast", "hidden"),
];

#[tokio::test(flavor = "multi_thread")]
async fn the_tap_keeps_just_what_a_worker_receives() {
    for (attention, prompt) in RESIDENT {
        let run = overhear("resident", attention, prompt).await;
        assert_eq!(run.bodies.len(), run.heard.messages.len(), "{attention:?}");
        for (body, (at, tensors)) in run.bodies.iter().zip(&run.heard.messages) {
            let received = Message::<AdvanceHeader>::decode(body).unwrap();
            assert_eq!(&received.header.at, at);
            assert!(&received.tensors == tensors, "{attention:?}: {at}");
        }
    }
    let run = overhear("ppidm", "paired", "hidden").await;
    assert_eq!(run.bodies.len(), run.heard.pieces.len());
    for (body, piece) in run.bodies.iter().zip(&run.heard.pieces) {
        let received = Message::<RunHeader>::decode(body).unwrap();
        assert!(received.header.work == std::slice::from_ref(&piece.work));
        for (name, input) in piece.work.inputs().iter().zip(&piece.inputs) {
            let got = &received.tensors[&format!("0.{name}")];
            assert!(got == &input.clone().into(), "{name} of {:?}", piece.work);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_view_has_what_the_worker_computed_and_what_it_was_sent() {
    for (attention, prompt) in RESIDENT {
        let run = overhear("resident", attention, prompt).await;
        let expected: Vec<_> = (run.whole.iter().enumerate())
            .map(|(i, y)| [run.own_rows(&sample(i as u64)), run.own_rows(y)])
            .collect();
        let views = run.views();
        assert_eq!(views.len(), TIMESTEPS.len());
        for (view, [x, y]) in views.iter().zip(&expected) {
            let want = by_pixel(&[x, y]).unwrap().unwrap();
            assert_begins_with(view.pixels.as_ref().unwrap(), &want);
            assert!(view.stages.contains_key("mid_block"), "{attention:?}");
            assert_eq!(view.keys.is_some(), attention == "broadcast");
            assert_eq!(view.tile.is_some(), attention == "tiled");
            assert_eq!(view.prompt.is_some(), prompt == "shared");
        }
    }
    let run = overhear("ppidm", "paired", "hidden").await;
    let expected: Vec<_> = run.whole.iter().map(|y| run.own_rows(y)).collect();
    for (view, y) in run.views().iter().zip(&expected) {
        let want = by_pixel(&[y]).unwrap().unwrap();
        assert_begins_with(view.pixels.as_ref().unwrap(), &want);
        assert!(view.prompt.is_some() && view.stages.len() > 3);
    }
}

/// The first columns of `got` are those of `want`, to rounding.
#[track_caller]
fn assert_begins_with(got: &HostTensor, want: &HostTensor) {
    assert_eq!(got.shape[0], want.shape[0]);
    let (width, columns) = (got.shape[1], want.shape[1]);
    let pairs = got
        .data
        .chunks_exact(width)
        .zip(want.data.chunks_exact(columns));
    let differences =
        pairs.flat_map(|(got, want)| got.iter().zip(want).map(|(a, b)| (a - b).abs()));
    let worst = differences.fold(0.0, f32::max);
    assert!(worst < 1e-4, "off by {worst}");
}

fn demo() -> String {
    repository().join("assets/demo-model").display().to_string()
}

fn policy(name: &str) -> String {
    let path = repository().join(format!("configs/{name}.toml"));
    path.display().to_string()
}

/// What `lacuna audit` finds of 10 + 2 pictures in two steps of the demo model, and the folder of its files.
async fn audit(policies: &str, workers: &str, ppidm: &str) -> (tempfile::TempDir, Vec<Value>) {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().display().to_string();
    let arguments = [
        ["--device", "cpu"],
        ["--model", &demo()],
        ["--prompts", "10"],
        ["--held-out", "2"],
        ["--steps", "2"],
        ["--audited-steps", "1"],
        ["--pictures", "1"],
        ["--policies", policies],
        ["--workers", workers],
        ["--ppidm", ppidm],
        ["--out", &out],
    ];
    let arguments = [&["audit"], arguments.as_flattened()].concat();
    lacuna(arguments).await.unwrap();
    let findings = std::fs::read(folder.path().join("audit.json")).unwrap();
    (folder, serde_json::from_slice(&findings).unwrap())
}

/// The findings under `policy` of attacks whose names begin so.
fn found<'a>(findings: &'a [Value], policy: &str, attack: &str) -> Vec<&'a Value> {
    let is =
        |f: &&Value| f["policy"] == policy && f["attack"].as_str().unwrap().starts_with(attack);
    findings.iter().filter(is).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_audit_leaves_its_tables_and_its_sheet() {
    let policies = [policy("policies/private"), policy("audit/tiled")].join(",");
    let (folder, findings) = audit(&policies, "4", "true").await;
    let read = |name: &str| std::fs::read_to_string(folder.path().join(name)).unwrap();
    assert_eq!(read("audit.csv").lines().count(), 1 + findings.len());
    let chosen = findings.iter().filter(|f| f["chosen"] == true).count();
    assert_eq!(read("audit.md").lines().count(), 2 + chosen);
    for (policy, attack) in [
        ("none", "no attack"),
        ("private", "own rows"),
        ("private", "the prompt by strips"),
        ("private", "convolutional decoder"),
        ("private", "the prompt by fit"),
        ("private", "diffusion prior"),
        ("tiled", "tiles rotated back"),
        ("ppidm", "strips"),
        ("ppidm", "the prompt's words"),
        ("ppidm", "diffusion prior"),
    ] {
        assert!(
            !found(&findings, policy, attack).is_empty(),
            "no {attack} under {policy}"
        );
    }
    assert!(found(&findings, "private", "the prompt's words").is_empty());
    assert!(findings.iter().all(|f| f["uniformity"].is_null()));
    let own = found(&findings, "private", "own rows")[0];
    let score = &own["score"];
    assert!(
        score["psnr_seen"].as_f64() > score["psnr_unseen"].as_f64(),
        "{own}"
    );
    // Who knows the prompt paints what was not seen better than who knows nothing of it.
    let painted = found(&findings, "private", "diffusion prior");
    let unseen = |from: &str| {
        let line = painted
            .iter()
            .find(|f| f["from"].as_str().unwrap().contains(from));
        line.unwrap()["score"]["psnr_unseen"].as_f64().unwrap()
    };
    assert!(unseen("true prompt") > unseen("no prompt"), "{painted:?}");
    // The truth, what is held, three cases and two of them with a prior, and the mean.
    let sheet = Png::read(&folder.path().join("sheet.png"));
    assert!(sheet.width > 8 * 128 && sheet.height > 128);
}

/// Whoever lacks one worker of a group has uniform words, and of the picture no more than the mean of others.
#[tokio::test(flavor = "multi_thread")]
async fn of_blind_workers_nothing_is_recovered() {
    let (_folder, findings) = audit(&policy("audit/blind"), "2,3", "false").await;
    let mean = found(&findings, "none", "no attack")[0];
    let whole = |f: &Value| f["score"]["psnr_seen"].as_f64().unwrap();
    assert!(mean["score"]["psnr_unseen"].is_null(), "{mean}");
    for coalition in ["0", "1", "0+1", "0+2", "1+2"] {
        let policy = format!("blind, worker {coalition}");
        let uniform = found(&findings, &policy, "words and differences, uniform");
        assert_eq!(uniform.len(), 1, "{policy}: {findings:?}");
        assert!(uniform[0]["uniformity"]["tests"].as_u64() > Some(500));
        for attack in ["own rows", "strips", "convolutional decoder"] {
            for found in found(&findings, &policy, attack) {
                // The mean of ten pictures' latents, decoded, is 1.3 dB off the mean of their pixels; a leak is 10.
                assert!(whole(found) < whole(mean) + 2.0, "{found}\n{mean}");
            }
        }
        // It has no rows that it could hold a prompt against.
        assert!(found(&findings, &policy, "the prompt by fit").is_empty());
        assert_eq!(found(&findings, &policy, "diffusion prior").len(), 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_audit_that_cannot_be_is_refused_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("none").display().to_string();
    for (flag, value, reason) in [
        ("--prompts", "9", "--prompts 9: at least 10"),
        ("--provider", "4", "of 4 workers the last is 3"),
        ("--held-out", "0", "--held-out 0"),
        ("--policies", "missing.toml", "missing.toml"),
    ] {
        let error = lacuna(["audit", "--model", &demo(), "--out", &out, flag, value]).await;
        let error = error.unwrap_err();
        assert!(error.contains(reason), "{reason:?} is not in: {error}");
    }
    assert!(!Path::new(&out).exists());
}
