//! What the private channel and the gate cost: seconds a step and bytes of TLS with pins and tokens beside plain HTTP, all in one
//! run, a picture of each kind in turn.
//!
//!     cargo run --release -p tests --example channel [PICTURES OF EACH KIND]      # needs the built lacuna and lacuna-worker

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;
use tests::golden::repository;
use tests::processes::{Setup, WorkerProcess, binary, worker_binary};
use tests::relay::Relay;
use tokio::task::spawn_blocking;

/// Pictures of each kind.
const PICTURES: usize = 30;
/// Steps of a picture.
const STEPS: usize = 20;
/// Workers of a picture.
const WORKERS: usize = 2;

/// A way to talk with workers, and workers that are talked to so.
struct Way {
    name: &'static str,
    workers: Vec<WorkerProcess>,
    /// What the fleet's file says of each.
    entries: Vec<String>,
    fleet: PathBuf,
}

impl Way {
    fn start(
        name: &'static str,
        folder: &Path,
        binary: &Path,
        arguments: &str,
        more: &str,
    ) -> Self {
        let folder = folder.join(name.replace(' ', "-"));
        std::fs::create_dir(&folder).unwrap();
        let (mut workers, mut entries) = (Vec::new(), Vec::new());
        for i in 0..WORKERS {
            let identity = folder.join(format!("identity-{i}"));
            let arguments = arguments.replace("IDENTITY", identity.to_str().unwrap());
            let mut worker = WorkerProcess::start(Setup {
                binary: binary.to_owned(),
                model: model(),
                log: folder.join(format!("worker-{i}.log")),
                level: "info".into(),
                arguments: arguments.split_whitespace().map(str::to_owned).collect(),
                variables: Vec::new(),
            });
            entries.push(match arguments.contains("--entry") {
                true => worker.entry().replace("WHOSE-MACHINE", &format!("p{i}")),
                false => format!(
                    "[[worker]]\nurl = \"http://{}\"\nprovider = \"p{i}\"\n{more}\n",
                    worker.address()
                ),
            });
            workers.push(worker);
        }
        let fleet = folder.join("fleet.toml");
        std::fs::write(&fleet, entries.concat()).unwrap();
        Self {
            name,
            workers,
            entries,
            fleet,
        }
    }

    /// Bytes that go up and down, with all that the channel and HTTP add, for a picture.
    async fn bytes(&self, lacuna: &Path) -> [u64; 2] {
        let mut text = self.entries.concat();
        let mut relays = Vec::new();
        for worker in &self.workers {
            let scheme = match text.contains(&format!("https://{}", worker.address())) {
                true => "https",
                false => "http",
            };
            let url = format!("{scheme}://{}", worker.address());
            let relay = Relay::counting(&url);
            text = text.replace(&url, &relay.url);
            relays.push(relay);
        }
        let fleet = self.fleet.with_file_name("counted.toml");
        std::fs::write(&fleet, text).unwrap();
        seconds_a_step(lacuna, &fleet).await;
        let passed = relays.iter().map(Relay::passed);
        passed.fold([0; 2], |[a, b], [up, down]| [a + up, b + down])
    }
}

fn model() -> PathBuf {
    repository().join("assets/demo-model")
}

/// A picture by the workers of a `fleet`: seconds a step.
async fn seconds_a_step(lacuna: &Path, fleet: &Path) -> f64 {
    let [picture, report] = ["picture.png", "report.json"].map(|name| fleet.with_file_name(name));
    let mut command = Command::new(lacuna);
    command.args([
        "generate",
        "a large red circle",
        "--seed",
        "7",
        "--device",
        "cpu",
    ]);
    command.args(["--scheme", "resident", "--wire", "f32", "--steps"]);
    command.arg(STEPS.to_string()).arg("--model").arg(model());
    command.arg("--fleet").arg(fleet).arg("--out").arg(picture);
    command.arg("--report").arg(&report).stdout(Stdio::null());
    let made = spawn_blocking(move || command.status().unwrap())
        .await
        .unwrap();
    assert!(made.success());
    let report: Value = serde_json::from_slice(&std::fs::read(report).unwrap()).unwrap();
    report["seconds"]["denoise"].as_f64().unwrap() / STEPS as f64
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

#[tokio::main]
async fn main() {
    let (Some(worker), Some(lacuna)) = (worker_binary(), binary("lacuna")) else {
        return;
    };
    let pictures = std::env::args().nth(1);
    let pictures = pictures.map_or(PICTURES, |text| {
        text.parse().expect("pictures of each kind")
    });
    let folder = tempfile::tempdir().unwrap();
    let start = |name, arguments, more| Way::start(name, folder.path(), &worker, arguments, more);
    let ways = [
        start("plain HTTP", "", ""),
        start(
            "with a token",
            "--token a-token-of-a-test",
            "token = \"a-token-of-a-test\"",
        ),
        start(
            "TLS with a pin and a token",
            "--identity IDENTITY --entry",
            "",
        ),
    ];
    // The first picture of each warms it up.
    for way in &ways {
        seconds_a_step(&lacuna, &way.fleet).await;
    }
    let mut times = vec![Vec::new(); ways.len()];
    for picture in 0..pictures {
        // Each comes first, in the middle and last as often.
        for place in 0..ways.len() {
            let way = (picture + place) % ways.len();
            times[way].push(seconds_a_step(&lacuna, &ways[way].fleet).await);
        }
    }
    println!("{pictures} pictures of each kind, of {STEPS} steps, by {WORKERS} workers");
    println!(
        "| | ms a step, median | beside plain, median of pairs | MB up | MB down | bytes beside plain |"
    );
    println!("|---|---|---|---|---|---|");
    let plain = ways[0].bytes(&lacuna).await;
    let mut last = (0.0, 0.0);
    for (way, took) in ways.iter().zip(&times) {
        let [up, down] = way.bytes(&lacuna).await;
        let bytes = (up + down) as f64 / (plain[0] + plain[1]) as f64;
        let pairs = took.iter().zip(&times[0]).map(|(own, plain)| own / plain);
        let ratio = median(pairs.collect());
        println!(
            "| {} | {:.1} | {ratio:.3} | {:.2} | {:.2} | {bytes:.4} |",
            way.name,
            1e3 * median(took.clone()),
            up as f64 / 1e6,
            down as f64 / 1e6
        );
        last = (ratio, bytes);
    }
    let (ratio, bytes) = last;
    println!(
        "TLS with a pin and a token: {ratio:.3} times the seconds of plain HTTP, {bytes:.4} times the bytes"
    );
}
