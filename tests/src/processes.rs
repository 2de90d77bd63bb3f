//! Workers as processes of their own: the built binary, the signals that it gets, and what it says of itself.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use lacuna_model::memory;
use lacuna_orchestrator::fleet::line::http_client;

/// Looks at a log so often, and so many times at most.
const LOOK: Duration = Duration::from_millis(50);
const LOOKS: usize = 1200;
/// Where a worker listens that may choose.
const ANYWHERE: &str = "127.0.0.1:0";

/// The worker's binary beside the test or example that runs. Says so where there is none, since only other packages were built.
pub fn worker_binary() -> Option<PathBuf> {
    binary("lacuna-worker")
}

/// The binary of the package `name`, likewise.
pub fn binary(name: &str) -> Option<PathBuf> {
    let own = std::env::current_exe().unwrap();
    // Tests lie in `deps`, examples in `examples`.
    let binary = own.ancestors().nth(2).unwrap().join(name);
    if !binary.is_file() {
        println!("skipped: there is no {name}; cargo build --release -p {name} makes it");
        return None;
    }
    Some(binary)
}

/// How a worker is started.
#[derive(Clone, Debug)]
pub struct Setup {
    /// Of [`worker_binary`].
    pub binary: PathBuf,
    /// What it holds.
    pub model: PathBuf,
    /// Where its log goes.
    pub log: PathBuf,
    /// How much it logs; `info` at least.
    pub level: String,
    /// Further arguments.
    pub arguments: Vec<String>,
    /// Variables, of which it has no others than these and the level's.
    pub variables: Vec<(String, String)>,
}

/// A worker's process on loopback, on the CPU; it ends when dropped.
pub struct WorkerProcess {
    child: Child,
    setup: Setup,
    /// Where it listens; once that was chosen it stays.
    address: String,
    /// Where it tells what it counts, if it does.
    metrics: Option<String>,
}

impl Drop for WorkerProcess {
    fn drop(&mut self) {
        self.kill();
    }
}

impl WorkerProcess {
    /// Starts one, and waits until it is ready.
    ///
    /// # Panics
    /// When it ends, or is not ready after a minute.
    #[track_caller]
    pub fn start(setup: Setup) -> Self {
        let mut worker = Self {
            child: spawn(&setup, ANYWHERE),
            setup,
            address: ANYWHERE.into(),
            metrics: None,
        };
        worker.ready();
        worker
    }

    /// Starts it again where it was, after [`Self::kill`]; [`Self::ready`] waits for it.
    pub fn start_again(&mut self) {
        self.child = spawn(&self.setup, &self.address);
    }

    /// Waits until it is ready.
    ///
    /// # Panics
    /// As [`Self::start`].
    #[track_caller]
    pub fn ready(&mut self) {
        for _ in 0..LOOKS {
            let log = std::fs::read_to_string(&self.setup.log).unwrap();
            // A line that is half written is read again.
            let lines = || log.split_inclusive('\n').filter(|l| l.ends_with('\n'));
            let after = |words: &str| lines().find_map(|l| Some(l.split_once(words)?.1.trim()));
            if let Some((_, address)) = after("ready on ").and_then(|at| at.split_once("://")) {
                address.clone_into(&mut self.address);
                self.metrics = after("metrics on ").map(str::to_owned);
                return;
            }
            if self.child.try_wait().unwrap().is_some() {
                // While it was gone its port may have been lent to somebody, for a moment.
                let is_taken = log.contains("cannot listen on") && self.address != ANYWHERE;
                assert!(is_taken, "it ended: {log}");
                self.start_again();
            }
            std::thread::sleep(LOOK);
        }
        panic!("it is not ready after a minute");
    }

    /// Host and port.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Where its log is.
    pub fn log(&self) -> &Path {
        &self.setup.log
    }

    /// What it printed for a fleet file.
    pub fn entry(&mut self) -> String {
        let lines = BufReader::new(self.child.stdout.take().unwrap()).lines();
        lines.take(5).map(|line| line.unwrap() + "\n").collect()
    }

    /// Ends it at once (SIGKILL); one that has ended is as good.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Sends it a signal by its name, such as `STOP`.
    pub fn signal(&self, name: &str) {
        let id = self.child.id().to_string();
        let sent = Command::new("kill").args(["-s", name, &id]).status();
        assert!(sent.unwrap().success(), "SIG{name}");
    }

    /// Whether it runs.
    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// Bytes of memory that it holds.
    pub fn resident(&self) -> u64 {
        memory::resident_of_process(self.child.id()).unwrap()
    }

    /// The most that it has held at a time.
    pub fn peak(&self) -> u64 {
        memory::peak_of_process(self.child.id()).unwrap()
    }

    /// Lets [`Self::peak`] count from now on, where the system can.
    pub fn forget_peak(&self) {
        memory::forget_peak(self.child.id());
    }

    /// A number of its metrics, for which it must have been started with `--metrics`; a counter that has counted nothing is 0.
    pub async fn metric(&self, name: &str) -> f64 {
        let url = self.metrics.as_ref().expect("started with --metrics");
        let http = http_client().no_proxy().build().unwrap();
        let text = http.get(url).send().await.unwrap().text().await.unwrap();
        let value = text
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        value.map_or(0.0, |value| value.parse().unwrap())
    }
}

fn spawn(setup: &Setup, listen: &str) -> Child {
    let log = std::fs::File::create(&setup.log).unwrap();
    let mut command = Command::new(&setup.binary);
    command.env_clear().env("RUST_LOG", &setup.level);
    command.envs(setup.variables.iter().cloned());
    command.args(["--listen", listen, "--device", "cpu", "--model"]);
    command.arg(&setup.model).args(&setup.arguments);
    command.stdout(Stdio::piped()).stderr(log).spawn().unwrap()
}
