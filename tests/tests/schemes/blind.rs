//! Shares that tell nothing, over real workers: the picture that was promised, the bytes that were promised, and
//! who is refused.

use std::path::PathBuf;

use axum::body::Bytes;
use lacuna_orchestrator::schemes::blind::options::PRESETS;
use lacuna_orchestrator::schemes::{Setting, Sizes};
use lacuna_wire::{Message, Payload};
use lacuna_worker::Options;
use serde_json::Value;
use tests::golden::{Golden, MODELS};
use tests::journey::Journey;
use tests::reference::psnr;
use tests::relay::Relay;
use tests::relay::fault::Fault;
use tests::workers::{RunningWorker, fleet_file, model};

const MODEL: &str = "odd";

fn journey(name: &str, steps: usize) -> Journey {
    Journey::golden(&Golden::load(name)).with("--steps", steps.to_string())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_picture_is_as_near_as_its_bits_promise() {
    // Random weights, few steps and guidance make more of every error than a trained model does.
    for name in MODELS {
        let journey = journey(name, 4);
        let local = journey.go().await.unwrap();
        for (workers, options, least) in [
            (2, "speed", 28.0),
            (3, "speed", 28.0),
            (4, "speed", 28.0),
            (4, "speed --share-groups 2", 28.0),
            (2, "quality", 55.0),
            (4, "quality --share-groups 2", 55.0),
            (2, "speed --share-carries 4", 28.0),
            (4, "speed --share-carries 16", 28.0),
            (2, "quality --share-carries 8", 55.0),
            (2, "speed --share-layers all", 21.0),
            (2, "quality --share-layers all", 43.0),
            (4, "quality --share-layers all --share-groups 2", 43.0),
            (3, "speed --share-layers 100", 25.0),
            (2, "quality --share-weights f16", 43.0),
            (2, "quality --shares ring --share-weights f16", 50.0),
            (2, "speed --shares ring", 28.0),
            (4, "speed --shares ring", 28.0),
            (3, "quality --shares ring", 55.0),
            (
                4,
                "quality --shares ring --share-groups 2 --share-layers all",
                55.0,
            ),
        ] {
            let blind = journey.clone().by_shares(workers);
            let mut words = format!("--share-bits {options}");
            let blind = blind.with_all(&words).go().await.unwrap();
            let psnr = blind.latents_psnr(&local);
            words += &format!(", {name}, {workers} workers: {psnr:.1} dB");
            println!("{words}");
            let case = words;
            assert!(psnr >= least, "{case}: {psnr:.1} dB");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_demo_picture_keeps_what_each_preset_promises() {
    let Some(journey) = Journey::demo() else {
        return;
    };
    let journey = journey.with("--steps", "25");
    let local = journey.go().await.unwrap().png();
    for preset in &PRESETS {
        for other in ["", "--share-carries 8", "--shares ring"] {
            let blind = journey
                .clone()
                .by_shares(2)
                .with("--share-bits", preset.name);
            let blind = blind.with_all(other).go().await.unwrap().png();
            let psnr = psnr(&blind.values(), &local.values(), 255.0);
            println!("{} {other} {psnr:.1} dB", preset.name);
            assert!(
                psnr >= preset.psnr(),
                "{} {other} {psnr:.1} dB",
                preset.name
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_sends_and_computes_what_was_counted() {
    for (name, workers, options) in [
        ("sd1", 2, ""),
        ("sd2", 3, ""),
        ("odd", 4, "--share-groups 2"),
        ("sd1", 2, "--share-layers all"),
        ("sd2", 3, "--share-layers all --share-carries 4"),
        ("odd", 4, "--share-layers 100 --share-groups 2"),
        ("sd1", 3, "--shares ring"),
        (
            "odd",
            2,
            "--shares ring --share-layers all --share-bits 20/11",
        ),
    ] {
        let steps = 4;
        let run = journey(name, steps as usize).by_shares(workers);
        let files = run.with_all(options).go().await;
        let report = files.unwrap().report();
        let unet = model(name).unet().clone();
        let golden = Golden::load(name);
        let latents = &golden.host("pipe.latents0").shape;
        let sizes = Sizes {
            latents: [2, latents[2], latents[3]],
            levels: unet.levels(),
            tokens: 77,
        };
        let words: Vec<&str> = options.split_whitespace().collect();
        let pairs = words.chunks(2);
        let pairs: Vec<_> = pairs.map(|pair| (&pair[0][2..], pair[1])).collect();
        let scheme = tests::scheme::scheme("blind", &pairs);
        let [first, later] = Setting {
            scheme,
            sizes,
            adapted: false,
        }
        .first_calls(&unet, workers)
        .unwrap();
        // Some schedulers call more than once a step.
        let requests = report["workers"][0]["requests"].as_u64().unwrap();
        let calls = requests / later.exchanges.len() as u64;
        assert!(calls >= steps && requests == calls * later.exchanges.len() as u64);
        let times = |first: u64, later: u64| first + (calls - 1) * later;
        for (worker, told) in report["workers"].as_array().unwrap().iter().enumerate() {
            let of = |count: &lacuna_orchestrator::schemes::count::Count| {
                let each = count.exchanges.iter();
                each.fold([0, 0], |[up, down], e| {
                    [up + e.up[worker] as u64, down + e.down[worker] as u64]
                })
            };
            let [[up, down], [later_up, later_down]] = [of(&first), of(&later)];
            let case = format!("{name}, {options}, worker {worker}");
            assert_eq!(told["payload_up"], times(up, later_up), "{case}");
            assert_eq!(told["payload_down"], times(down, later_down), "{case}");
            let flop = times(first.workers_flop[worker], later.workers_flop[worker]);
            let told = told["gflop"].as_f64().unwrap();
            assert!((told - flop as f64 / 1e9).abs() < 1e-6, "{case}: {told}");
        }
        let flop = times(first.user_flop, later.user_flop);
        let told = report["user"]["gflop"].as_f64().unwrap();
        assert!((told - flop as f64 / 1e9).abs() < 1e-6, "{name}: {told}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn workers_that_would_see_it_together_are_refused_by_name() {
    let journey = journey(MODEL, 1).with("--scheme", "blind");
    let [first, second] = [
        RunningWorker::start(MODEL, &Options::default()).await,
        RunningWorker::start(MODEL, &Options::default()).await,
    ];
    let urls = [(first.url.as_str(), None), (second.url.as_str(), None)];
    let of_one = |_| "cloud".to_owned();
    let file = tests::workers::fleet_file_of(&journey.file(""), &urls, of_one);
    let error = journey.clone().with("--workers", file).go().await.err();
    let error = error.expect("a refusal");
    for part in ["of one provider, cloud", "would see everything", &first.url] {
        assert!(error.contains(part), "{part:?} is not in {error}");
    }
    let file = fleet_file(&journey.file(""), &urls[..1]);
    let error = journey.with("--workers", file).go().await.err();
    let error = error.expect("a refusal");
    assert!(error.contains("shared among 2 to 4"), "{error}");
    assert_eq!(
        first.service.open_sessions() + second.service.open_sessions(),
        0
    );
}

/// A body that is a message with other words in it.
fn with_words(reply: &Bytes, change: impl Fn(&mut Vec<u8>)) -> Vec<u8> {
    let mut message = Message::<Value>::decode(reply).unwrap();
    for tensor in message.tensors.values_mut() {
        if let Payload::Codes { shape, data } = tensor {
            change(data);
            *shape = [data.len()];
        }
    }
    message.encode().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn who_answers_other_than_so_many_words_is_named() {
    let good = RunningWorker::start(MODEL, &Options::default()).await;
    for role in [0, 1] {
        let change = |reply: Bytes| with_words(&reply, |words| words.truncate(words.len() - 1));
        let bad = tests::workers::tampering_worker(MODEL, 5, change).await;
        let journey = journey(MODEL, 1).with("--scheme", "blind");
        let mut urls = [(bad.as_str(), None), (good.url.as_str(), None)];
        urls.rotate_left(role);
        let run = journey
            .clone()
            .with("--workers", fleet_file(&journey.file(""), &urls));
        let error = run.go().await.err().expect("an error");
        assert!(
            error.contains(&bad) && !error.contains(&good.url),
            "{error}"
        );
        good.is_left().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_multiplies_wrong_is_caught_where_that_is_checked() {
    let good = RunningWorker::start(MODEL, &Options::default()).await;
    for (role, options) in [
        (0, ""),
        (1, ""),
        (1, "--share-layers all"),
        (0, "--shares ring"),
        (1, "--shares ring --share-layers all"),
    ] {
        // Numbers of another input, say: there are as many, and nothing is wrong with them by themselves.
        let change = |reply: Bytes| with_words(&reply, |words| words.rotate_left(7));
        let bad = tests::workers::tampering_worker(MODEL, 9, change).await;
        let journey = journey(MODEL, 2)
            .with("--scheme", "blind")
            .with_all(options);
        let mut urls = [(bad.as_str(), None), (good.url.as_str(), None)];
        urls.rotate_left(role);
        let run = journey
            .clone()
            .with("--workers", fleet_file(&journey.file(""), &urls));
        let error = run.clone().with("--verify", "1").go().await.err();
        let error = error.expect("an error");
        for part in [&*bad, "wrong numbers", "computes no more"] {
            assert!(error.contains(part), "{part:?} is not in {error}");
        }
        assert!(!error.contains(&good.url), "{error}");
        good.is_left().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_multiplies_right_is_never_blamed() {
    for (name, workers, groups, bits) in [
        ("sd1", 2, "1", "speed"),
        ("sd1", 3, "1", "quality"),
        ("sd1", 4, "1", "paper"),
        ("sd2", 4, "1", "speed"),
        ("sd2", 2, "1", "16/24.6"),
        ("odd", 3, "1", "quality"),
        ("odd", 4, "2", "quality"),
        ("sd1", 2, "1", "26/14"),
        ("sd2", 4, "1", "16/10"),
        ("odd", 4, "2", "32/18"),
    ] {
        let run = journey(name, 4)
            .with("--share-layers", "all")
            .by_shares(workers)
            .with("--share-bits", bits);
        let run = run.with("--share-groups", groups).with("--verify", "1");
        run.go().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn only_who_can_check_says_that_it_does() {
    let run = journey(MODEL, 1).with_all("--scheme local --verify 0.5");
    let error = run.go().await.err().expect("a refusal");
    assert!(error.contains("the scheme local cannot check"), "{error}");
    let run = journey(MODEL, 1).by_shares(2).with("--verify", "1.5");
    let error = run.go().await.err().expect("a refusal");
    assert!(error.contains("a share from 0 to 1"), "{error}");
}

/// A policy that allows no view at all, of as many as collude.
fn nothing(journey: &Journey, collusion: &str) -> PathBuf {
    let private = tests::golden::repository().join("configs/policies/private.toml");
    let text = std::fs::read_to_string(private).unwrap();
    let text = text.replace("psnr = 60.0", "psnr = 0.0");
    let path = journey.file("nothing.toml");
    let rules = format!("views = \"nothing\"\ncollusion = {collusion}\n");
    std::fs::write(&path, rules + &text).unwrap();
    path
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_that_allows_nothing_allows_shares_alone() {
    let mut workers = Vec::new();
    for _ in 0..4 {
        workers.push(RunningWorker::start(MODEL, &Options::default()).await);
    }
    let urls: Vec<_> = workers.iter().map(|w| (w.url.as_str(), None)).collect();
    let journey = journey(MODEL, 1);
    let fleet = fleet_file(&journey.file(""), &urls);
    let run = |scheme: &str, collusion: &str| {
        let run = journey
            .clone()
            .with("--scheme", scheme)
            .with("--workers", fleet.clone());
        run.with("--policy", nothing(&journey, collusion))
    };
    for scheme in ["resident", "ppidm"] {
        let error = run(scheme, "1").go().await.err().expect("a refusal");
        for part in ["views = nothing", "--scheme blind"] {
            assert!(error.contains(part), "{scheme}: {part:?} is not in {error}");
        }
    }
    // Where nobody names a scheme, it is the one for that.
    let words = [
        "generate", "x", "--device", "cpu", "--steps", "1", "--model",
    ];
    let words = words.map(PathBuf::from).into_iter().chain([
        tests::golden::model_dir(MODEL),
        "--fleet".into(),
        fleet.clone(),
        "--policy".into(),
        nothing(&journey, "1"),
        "--out".into(),
        journey.file("x.png"),
        "--report".into(),
        journey.file("x.json"),
    ]);
    tests::journey::lacuna(words).await.unwrap();
    let report = std::fs::read_to_string(journey.file("x.json")).unwrap();
    assert!(report.contains("\"scheme\": \"blind\""), "{report}");
    // With three of four colluding, pairs are too few.
    for (collusion, groups) in [("1", None), ("\"N-1\"", Some("1")), ("\"N-1\"", Some("2"))] {
        let mut run = run("blind", collusion);
        if let Some(groups) = groups {
            run = run.with("--share-groups", groups);
        }
        let run = run.go().await;
        assert_eq!(run.is_ok(), groups != Some("2"));
        match (run, groups) {
            (Err(error), Some("2")) => assert!(error.contains("collusion = N-1"), "{error}"),
            (Ok(files), _) => {
                let ledger = &files.report()["ledger"];
                for provider in ["p0", "p1", "p2", "p3"] {
                    let view = &ledger[provider];
                    assert_eq!(
                        (&view["rows"], &view["prompt"]),
                        (&0.0.into(), &false.into())
                    );
                    let words = &view["words"];
                    let [sent, drawn] = ["sent", "drawn"].map(|key| words[key].as_u64().unwrap());
                    assert!((sent > 0) != (drawn > 0), "{provider}: {words}");
                }
            }
            (Err(error), _) => panic!("{collusion}, {groups:?}: {error}"),
        }
    }
    let error = run("blind", "0").go().await.err().expect("a refusal");
    assert!(error.contains("collusion"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_is_fastest_is_taken_if_the_policy_allows_it() {
    let mut workers = Vec::new();
    for _ in 0..2 {
        workers.push(RunningWorker::start(MODEL, &Options::default()).await);
    }
    let urls: Vec<_> = workers.iter().map(|w| (w.url.as_str(), None)).collect();
    let journey = journey(MODEL, 1);
    let run = journey
        .clone()
        .with("--scheme", "auto")
        .with("--workers", fleet_file(&journey.file(""), &urls))
        .with("--policy", nothing(&journey, "1"));
    // Home on a slow link; shares where the user hardly computes and the link takes no time.
    for (user, uplink, sent) in [("10000", "0.1", false), ("0.001", "100000", true)] {
        let run = run.clone().with("--user-gflops", user);
        let run = run
            .with("--uplink-mbps", uplink)
            .with("--downlink-mbps", uplink);
        let files = run.with("--rtt-ms", "0.001").go().await.unwrap();
        let report = files.report();
        assert_eq!(
            report["user"]["bytes_up"].as_u64().unwrap() > 0,
            sent,
            "{user}"
        );
    }
}

/// What was said at the beginning of how many may collude holds to the end.
#[tokio::test(flavor = "multi_thread")]
async fn fewer_workers_than_were_given_are_not_enough() {
    let mut workers = Vec::new();
    for _ in 0..3 {
        workers.push(RunningWorker::start(MODEL, &Options::default()).await);
    }
    let lost = Relay::failing(&workers[0].url, 30, Fault::Gone);
    let mut urls: Vec<_> = workers.iter().map(|w| (w.url.as_str(), None)).collect();
    urls[0].0 = &lost.url;
    let journey = journey(MODEL, 3).with_all("--scheme blind --on-loss fewer");
    let fleet = fleet_file(&journey.file(""), &urls);
    let error = journey.with("--workers", fleet).go().await.err();
    let error = error.expect("a refusal");
    for part in [&*lost.url, "any 2 workers together", "a spare"] {
        assert!(error.contains(part), "{part:?} is not in {error}");
    }
}
