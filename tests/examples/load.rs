//! One worker under 1 to 64 sessions at once, and what becomes of those beyond: a table of latency, throughput and memory.
//!
//!     cargo run --release -p tests --example load [SECONDS A ROW]      # needs the built lacuna and lacuna-worker
//!
//! What a worker of four is sent for two steps of the demo picture is kept once, and then sent again in every session: whoever
//! sends computes nothing, so that what is timed is the worker. It ends with an error where a session is refused for which
//! there is room, or where the worker holds more memory than it may.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::Bytes;
use lacuna_model::device::OpenDevice;
use lacuna_orchestrator::error::Error;
use lacuna_orchestrator::fleet::config::FleetConfig;
use lacuna_orchestrator::fleet::line::Line;
use lacuna_protocol::session::OpenSession;
use lacuna_worker::{Model, Options, Service};
use tests::golden::repository;
use tests::processes::{Setup, WorkerProcess, binary, worker_binary};
use tests::workers::{fleet_file, overheard};
use tokio::sync::Barrier;
use tokio::task::{JoinSet, spawn_blocking};
use tokio::time::sleep;

/// Sessions for which the worker has room.
const ROOM: usize = 64;
/// Sessions at once, row by row.
const ROWS: [usize; 8] = [1, 2, 4, 8, 16, 32, ROOM, 96];
/// Steps that are kept.
const STEPS: usize = 2;
/// Workers of the picture that is kept; it is one in the middle that is kept.
const WORKERS: usize = 4;
/// How long a row takes.
const SECONDS: u64 = 6;
/// How long after a row it is looked at what the worker still holds.
const AFTER: Duration = Duration::from_secs(3);
/// Bytes of memory that each session may hold while it is at work, most of which its thread has freed and keeps for the next
/// request: measured, and some more.
const EACH: u64 = 28 << 20;
/// And what may be left of each when it has ended.
const LEFT: u64 = 4 << 20;

/// What a session is sent.
struct Talk {
    open: OpenSession,
    requests: Vec<Bytes>,
}

/// What one who asks for sessions has seen.
#[derive(Default)]
struct Seen {
    refused: bool,
    /// What each request took.
    times: Vec<Duration>,
}

fn model() -> PathBuf {
    repository().join("assets/demo-model")
}

/// What a worker is sent for a picture by `lacuna`.
async fn talk(lacuna: &Path, folder: &Path) -> Talk {
    let device = OpenDevice::cpu();
    let model_of_all = Model::load(&model().join("unet"), None, &[], &device.device).unwrap();
    let model_of_all = Arc::new(model_of_all);
    let mut workers = Vec::new();
    for _ in 0..WORKERS {
        let service = Service::new(model_of_all.clone(), &device, &Options::default()).unwrap();
        workers.push(overheard(&service).await);
    }
    let urls: Vec<_> = workers
        .iter()
        .map(|(url, _)| (url.as_str(), None))
        .collect();
    let mut command = Command::new(lacuna);
    command.args([
        "generate",
        "a large red circle",
        "--device",
        "cpu",
        "--steps",
    ]);
    command
        .arg(STEPS.to_string())
        .args(["--scheme", "resident"]);
    // One session, of which everything comes in order.
    command.args(["--lanes", "false", "--wire", "f16", "--model"]);
    command
        .arg(model())
        .arg("--fleet")
        .arg(fleet_file(folder, &urls));
    command.arg("--out").arg(folder.join("picture.png"));
    let made = spawn_blocking(move || command.output().unwrap())
        .await
        .unwrap();
    assert!(made.status.success(), "{made:?}");
    let heard = workers[1].1.lock().unwrap();
    let of = |what: &'static str| heard.iter().filter(move |(path, _)| path.ends_with(what));
    let (_, open) = of("/v1/sessions").next().expect("a session");
    let requests = of("/advance").map(|(_, body)| body.clone());
    Talk {
        open: serde_json::from_slice(open).unwrap(),
        requests: requests.collect(),
    }
}

/// Opens one session after the other until `end`, and says in each what there is to say.
async fn ask(mut line: Line, talk: Arc<Talk>, most: usize, end: Instant) -> Seen {
    line.agreed(talk.open.protocol);
    let mut seen = Seen::default();
    while Instant::now() < end {
        let session = match line.clone().open(&talk.open).await {
            Ok(session) => session,
            Err(Error::WorkerRefused { status: 503, .. }) => {
                seen.refused = true;
                break;
            }
            Err(error) => panic!("{error}"),
        };
        for body in &talk.requests {
            let begun = Instant::now();
            let path = ["v1", "sessions", &session.name, "advance"];
            line.send_again(&path, body, most).await.unwrap();
            seen.times.push(begun.elapsed());
        }
        session.close().await;
    }
    seen
}

#[tokio::main]
async fn main() {
    let (Some(worker), Some(lacuna)) = (worker_binary(), binary("lacuna")) else {
        return;
    };
    let seconds = std::env::args().nth(1);
    let seconds = seconds.map_or(SECONDS, |text| text.parse().expect("seconds a row"));
    let folder = tempfile::tempdir().unwrap();
    let talk = Arc::new(talk(&lacuna, folder.path()).await);
    let arguments =
        format!("--max-sessions {ROOM} --session-wait 0 --max-rows 32 --max-columns 32");
    let worker = WorkerProcess::start(Setup {
        binary: worker,
        model: model(),
        log: folder.path().join("worker.log"),
        level: "warn,lacuna_worker=info".into(),
        arguments: arguments.split(' ').map(str::to_owned).collect(),
        variables: Vec::new(),
    });
    let url = format!("http://{}/", worker.address());
    let config = FleetConfig::from_file(&fleet_file(folder.path(), &[(&url, None)])).unwrap();
    let line = || Line::new(&config.workers[0]).unwrap();
    let (info, _) = line().info().await.unwrap();
    let most = info.limits.max_body_bytes;
    let begun_with = worker.resident();
    // Requests' bodies and kept replies have as much room as four of the largest, each.
    let beside = begun_with + 8 * most as u64;
    let [may_hold, may_keep] = [EACH, LEFT].map(|each| beside + ROOM as u64 * each);
    let mb = |bytes: u64| bytes as f64 / 1e6;
    println!(
        "{} requests a session, of two steps of one strip of {WORKERS}; {seconds} s a row; room for {ROOM} sessions; the worker holds \
         {:.0} MB before, may hold {:.0} and keep {:.0}",
        talk.requests.len(),
        mb(begun_with),
        mb(may_hold),
        mb(may_keep)
    );
    println!(
        "| sessions | refused | requests a second | steps a second | median ms | p95 ms | MB at most | MB after |"
    );
    println!("|---|---|---|---|---|---|---|---|");
    let (mut in_order, mut most_held) = (true, 0);
    for sessions in ROWS {
        worker.forget_peak();
        let together = Arc::new(Barrier::new(sessions));
        let mut all = JoinSet::new();
        for _ in 0..sessions {
            let (line, talk, together) = (line(), talk.clone(), together.clone());
            all.spawn(async move {
                together.wait().await;
                ask(
                    line,
                    talk,
                    most,
                    Instant::now() + Duration::from_secs(seconds),
                )
                .await
            });
        }
        let begun = Instant::now();
        let seen = all.join_all().await;
        let took = begun.elapsed().as_secs_f64();
        let refused = seen.iter().filter(|seen| seen.refused).count();
        let mut times: Vec<f64> = seen
            .iter()
            .flat_map(|seen| seen.times.iter().map(|time| time.as_secs_f64() * 1e3))
            .collect();
        times.sort_by(f64::total_cmp);
        let quantile = |share: f64| times[((times.len() - 1) as f64 * share) as usize];
        sleep(AFTER).await;
        let each_step = talk.requests.len() as f64 / STEPS as f64;
        let a_second = times.len() as f64 / took;
        println!(
            "| {sessions} | {refused} | {a_second:.0} | {:.1} | {:.1} | {:.1} | {:.0} | {:.0} |",
            a_second / each_step,
            quantile(0.5),
            quantile(0.95),
            mb(worker.peak()),
            mb(worker.resident())
        );
        most_held = most_held.max(worker.peak());
        in_order &= refused == sessions.saturating_sub(ROOM) && worker.peak() <= may_hold;
        in_order &= worker.resident() <= may_keep;
    }
    assert!(
        in_order,
        "a session was refused for which there was room, or the worker held too much"
    );
    println!(
        "up to {ROOM} sessions at once on one worker, and {} beyond refused; no more than {:.0} MB held, and {:.0} kept",
        ROWS[ROWS.len() - 1] - ROOM,
        mb(most_held),
        mb(worker.resident())
    );
}
