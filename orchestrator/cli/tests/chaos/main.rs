//! Pictures by real processes while their workers are killed, paused, cut off, slowed and answered by a faulty relay: each is
//! finished, to the byte as if nothing had happened, or refused with a reason, and nothing is left behind.
//!
//!     [CHAOS_PICTURES=200] [CHAOS_SEED=7] [CHAOS_FIRST=0] [CHAOS_FLIPS=off] cargo test --release -p lacuna --test chaos -- --nocapture
//!
//! The seed is printed. With it, and with the number of a picture as CHAOS_FIRST, the same is done to the same workers after
//! as much of the work; what that hits by then depends on the machine as well.

#[path = "../common/mod.rs"]
mod common;
mod round;

use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use common::lacuna;
use round::{Blow, Round};
use tests::golden::repository;
use tests::processes::{Setup, WorkerProcess, worker_binary};
use tests::relay::Relay;

/// Pictures where nobody says how many.
const PICTURES: u64 = 8;
/// Steps of a picture: a second's work.
const STEPS: &str = "6";
/// What a picture takes at most, whatever is done to its workers: two that are lost one after the other, and what it takes to
/// find each out.
const LONGEST: Duration = Duration::from_secs(60);
/// How soon after a picture its last session is closed: a worker may never hear of it, and closes it itself.
const LEFT: Duration = Duration::from_secs(25);
/// Of pictures with a spare and permission, how many finish.
const FINISH: f64 = 0.95;
/// How much more memory a worker may hold than after its first pictures: 23 MB more was measured, and 47 MB less.
const GROWTH: u64 = 64 << 20;
/// What is painted, and from which seeds.
const SUBJECTS: [(&str, &str); 3] = [
    (
        "a large red circle above a small blue square on a yellow background",
        "1",
    ),
    ("a small white star at the top on a purple background", "2"),
    ("a green ring on the left on a black background", "3"),
];
/// What a refusal names: what became of a worker, or what is in the way of going on.
const REASONS: [&str; 9] = [
    "does not answer",
    "has been silent",
    "answers too slowly",
    "refuses (",
    "refuses the session",
    "answers nonsense",
    "is damaged on the way",
    "a provider would see",
    "max_rows",
];

/// What became of a picture.
#[derive(Debug, PartialEq)]
enum End {
    /// The picture is the undisturbed one.
    Finished,
    /// It is another.
    Wrong,
    /// There is none, for a reason.
    Refused(String),
}

/// `lacuna generate` in a process of its own, which ends when this is dropped.
struct Painting(Child);

impl Drop for Painting {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Two workers and a spare, and a place for files.
struct Chaos {
    folder: tempfile::TempDir,
    workers: Vec<WorkerProcess>,
    /// The pictures that are made when nothing happens.
    undisturbed: Vec<Vec<u8>>,
}

impl Chaos {
    /// Starts the workers, and has every one of them compute pictures in peace.
    fn start(binary: &Path) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let worker = |i| {
            let arguments = "--metrics 127.0.0.1:0 --session-unused 5 --session-idle 15";
            WorkerProcess::start(Setup {
                binary: binary.to_owned(),
                model: model(),
                log: folder.path().join(format!("worker-{i}.log")),
                level: "info".into(),
                arguments: arguments.split(' ').map(str::to_owned).collect(),
                variables: Vec::new(),
            })
        };
        let workers: Vec<WorkerProcess> = (0..3).map(worker).collect();
        let mut chaos = Self {
            folder,
            workers,
            undisturbed: Vec::new(),
        };
        for subject in 0..SUBJECTS.len() {
            let urls = chaos.urls();
            for pair in [[0, 1], [2, 0]] {
                let fleet = chaos.fleet(&pair.map(|i| urls[i].as_str()), None);
                let mut painting = chaos.paint(subject, &fleet, false);
                assert!(painting.0.wait().unwrap().success(), "{}", chaos.said());
                let picture = std::fs::read(chaos.path("picture.png")).unwrap();
                if let Some(same) = chaos.undisturbed.get(subject) {
                    assert!(*same == picture, "two pictures without any chaos differ");
                } else {
                    chaos.undisturbed.push(picture);
                }
            }
        }
        chaos
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn urls(&self) -> Vec<String> {
        let workers = self.workers.iter();
        workers
            .map(|worker| format!("http://{}/", worker.address()))
            .collect()
    }

    /// The file of a fleet of workers at `urls`, and of a `spare`.
    fn fleet(&self, urls: &[&str], spare: Option<&str>) -> PathBuf {
        let entry = |(i, url): (usize, &&str)| {
            format!("[[worker]]\nurl = \"{url}\"\nprovider = \"p{i}\"\n")
        };
        let mut text: String = urls.iter().enumerate().map(entry).collect();
        if let Some(url) = spare {
            text += &format!("[[worker]]\nurl = \"{url}\"\nprovider = \"spare\"\nspare = true\n");
        }
        let path = self.path("fleet.toml");
        std::fs::write(&path, text).unwrap();
        path
    }

    /// Begins a picture.
    fn paint(&self, subject: usize, fleet: &Path, permission: bool) -> Painting {
        let _ = std::fs::remove_file(self.path("picture.png"));
        let (prompt, seed) = SUBJECTS[subject];
        let mut command: Command = lacuna();
        command.args(["generate", prompt, "--seed", seed, "--steps", STEPS]);
        command.args(["--scheme", "resident", "--wire", "f32", "--device", "cpu"]);
        command.args(["--no-metadata", "--model"]).arg(model());
        command.arg("--fleet").arg(fleet);
        command.arg("--out").arg(self.path("picture.png"));
        if permission {
            command.arg("--policy").arg(self.policy());
        }
        let output = |name| std::fs::File::create(self.path(name)).unwrap();
        command.stdout(output("stdout")).stderr(output("stderr"));
        Painting(command.spawn().unwrap())
    }

    /// The private policy, but that anybody may see all rows.
    fn policy(&self) -> PathBuf {
        let private = repository().join("configs/policies/private.toml");
        let text = std::fs::read_to_string(private).unwrap();
        let changed = text.replace("max_rows = 0.25", "max_rows = 1.0");
        assert_ne!(text, changed);
        let path = self.path("policy.toml");
        std::fs::write(&path, changed).unwrap();
        path
    }

    /// What the last picture's process said.
    fn said(&self) -> String {
        let said = ["stdout", "stderr"].map(|name| std::fs::read(self.path(name)).unwrap());
        String::from_utf8_lossy(&said.concat()).into_owned()
    }

    /// Makes the picture of a `round`, and does to its workers what that says. Gives what came of it, how long it took, and
    /// how many faults its relays have caused.
    async fn picture(&mut self, round: &Round) -> (End, Duration, usize) {
        let urls = self.urls();
        let relays: Vec<Relay> = urls
            .iter()
            .enumerate()
            .map(|(i, url)| round.relay(i, url))
            .collect();
        let spare = round.terms.spare.then_some(relays[2].url.as_str());
        let fleet = self.fleet(&[&relays[0].url, &relays[1].url], spare);
        let subject = round.number as usize % SUBJECTS.len();
        let begun = Instant::now();
        let mut painting = self.paint(subject, &fleet, round.terms.permission);
        let mut strikes = round.strikes.clone();
        // Who is to be well again, and when.
        let mut hurt: Vec<(Instant, usize)> = Vec::new();
        let status = loop {
            let works = relays.iter().map(Relay::works).sum::<usize>();
            strikes.retain(|strike| {
                if works < strike.at {
                    return true;
                }
                let worker = &mut self.workers[strike.worker];
                match strike.blow {
                    Blow::Kill(back) => {
                        worker.kill();
                        hurt.extend(back.map(|time| (Instant::now() + time, strike.worker)));
                    }
                    Blow::Pause(time) => {
                        if worker.is_running() {
                            worker.signal("STOP");
                        }
                        hurt.push((Instant::now() + time, strike.worker));
                    }
                    Blow::CutOff => relays[strike.worker].cut(),
                    Blow::Silence => relays[strike.worker].silence(),
                    // From the beginning on.
                    Blow::Slow(_) | Blow::Faults(_) => {}
                }
                false
            });
            hurt.retain(|(when, worker)| {
                let waits = Instant::now() < *when;
                if !waits {
                    heal(&mut self.workers[*worker]);
                }
                waits
            });
            if let Some(status) = painting.0.try_wait().unwrap() {
                break status;
            }
            assert!(
                begun.elapsed() < LONGEST,
                "{round}: it hangs; {}",
                self.said()
            );
            tokio::time::sleep(Duration::from_millis(2)).await;
        };
        let took = begun.elapsed();
        let faults = relays.iter().map(Relay::faults).sum();
        for worker in &mut self.workers {
            heal(worker);
            worker.ready();
        }
        let said = self.said();
        assert!(!said.contains("panicked"), "{round}: {said}");
        let picture = std::fs::read(self.path("picture.png")).ok();
        let end = match picture {
            Some(picture) => {
                assert!(status.success(), "{round}: {said}");
                match picture == self.undisturbed[subject] {
                    true => End::Finished,
                    false => End::Wrong,
                }
            }
            None => {
                assert_eq!(status.code(), Some(1), "{round}: {said}");
                let error = said.lines().find(|line| line.starts_with("error: "));
                let error = error.unwrap_or_else(|| panic!("{round}: no reason: {said}"));
                let names = REASONS.iter().any(|reason| error.contains(reason));
                assert!(names, "{round}: {error}");
                End::Refused(error.to_owned())
            }
        };
        (end, took, faults)
    }

    /// That nobody has a session open, or soon has none.
    async fn is_left(&self) {
        let begun = Instant::now();
        for (i, worker) in self.workers.iter().enumerate() {
            while worker.metric("lacuna_sessions").await > 0.0 {
                assert!(begun.elapsed() < LEFT, "worker {i} keeps a session");
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        }
    }

    /// Bytes that each worker holds.
    fn resident(&self) -> Vec<u64> {
        self.workers.iter().map(WorkerProcess::resident).collect()
    }
}

/// Lets a worker run that is paused, and starts one that has ended.
fn heal(worker: &mut WorkerProcess) {
    match worker.is_running() {
        true => worker.signal("CONT"),
        false => worker.start_again(),
    }
}

fn model() -> PathBuf {
    repository().join("assets/demo-model")
}

/// A number from the environment.
fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(
        text.parse()
            .unwrap_or_else(|_| panic!("{name}={text} is no number")),
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn a_picture_is_finished_or_refused_whatever_is_done_to_its_workers() {
    let Some(binary) = worker_binary() else {
        return;
    };
    let seed = number("CHAOS_SEED").unwrap_or_else(rand::random);
    let (first, pictures) = (number("CHAOS_FIRST").unwrap_or(0), number("CHAOS_PICTURES"));
    let pictures = pictures.unwrap_or(PICTURES);
    let flips = std::env::var("CHAOS_FLIPS").map_or(true, |flips| flips != "off");
    println!("CHAOS_SEED={seed}");
    let mut chaos = Chaos::start(&binary);
    let before = chaos.resident();
    let mut ends = Vec::new();
    for number in first..first + pictures {
        let round = Round::draw(seed, number, flips);
        let (end, took, faults) = chaos.picture(&round).await;
        let seconds = took.as_secs_f64();
        println!("{round}; {faults} faults: {end:?} after {seconds:.1} s");
        ends.push((round, end, seconds, faults));
    }
    chaos.is_left().await;
    let after = chaos.resident();
    println!("bytes that workers hold, before and after: {before:?}, {after:?}");
    let count = |of: &dyn Fn(&Round, &End) -> bool| {
        let these = ends.iter().filter(|(round, end, ..)| of(round, end));
        these.count()
    };
    let meant = |round: &Round| round.terms.spare && round.terms.permission;
    let finished = count(&|_, end| *end == End::Finished);
    let wrong = count(&|_, end| *end == End::Wrong);
    let of_meant = count(&|round, _| meant(round));
    let meant_finished = count(&|round, end| meant(round) && *end == End::Finished);
    let faults: usize = ends.iter().map(|(.., faults)| faults).sum();
    let mut times: Vec<f64> = ends.iter().map(|(_, _, seconds, _)| *seconds).collect();
    times.sort_by(f64::total_cmp);
    println!(
        "chaos, seed {seed}: of {pictures} pictures {finished} finished as if undisturbed, {wrong} as others, {} refused with a reason; \
         of {of_meant} with a spare and permission {meant_finished} finished; {faults} faults of relays; {:.1} s in the median, {:.1} s \
         at most",
        ends.len() - finished - wrong,
        times[times.len() / 2],
        times[times.len() - 1]
    );
    assert_eq!(wrong, 0, "pictures that are not the undisturbed ones");
    let least = (FINISH * of_meant as f64).floor() as usize;
    assert!(
        meant_finished >= least,
        "{meant_finished} of {of_meant} finished"
    );
    for (worker, (before, after)) in before.iter().zip(&after).enumerate() {
        assert!(
            *after < before + GROWTH,
            "worker {worker}: {before} bytes, then {after}"
        );
    }
}
