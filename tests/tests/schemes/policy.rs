//! What a policy forbids is refused before a byte leaves; what it allows is what a run shows.

use std::path::PathBuf;

use lacuna_orchestrator::fleet::config::FleetConfig;
use lacuna_orchestrator::fleet::emulated::EmulatedLink;
use lacuna_orchestrator::fleet::link::Link;
use lacuna_orchestrator::fleet::measure::measure;
use lacuna_orchestrator::policy::Policy;
use lacuna_protocol::placement::SelfAttention;
use lacuna_worker::Options;
use serde_json::Value;
use tests::golden::{Golden, repository};
use tests::journey::{Journey, lacuna};
use tests::workers::{RunningWorker, dead_urls, fleet_file, fleet_file_of};

const MODEL: &str = "sd2";

fn policy(name: &str) -> PathBuf {
    repository().join(format!("configs/policies/{name}.toml"))
}

#[track_caller]
fn assert_names(message: &str, parts: &[&str]) {
    for part in parts {
        assert!(message.contains(part), "{part:?} is not in: {message}");
    }
}

fn journey() -> Journey {
    Journey::golden(&Golden::load(MODEL))
        .with("--steps", "2")
        .with("--scheme", "resident")
}

async fn four_workers() -> [RunningWorker; 4] {
    let worker = async || RunningWorker::start(MODEL, &Options::default()).await;
    [
        worker().await,
        worker().await,
        worker().await,
        worker().await,
    ]
}

/// `private` with some lines replaced by others.
fn changed(journey: &Journey, changes: &[(&str, &str)]) -> PathBuf {
    let text = std::fs::read_to_string(policy("private")).unwrap();
    let text = changes.iter().fold(text, |text, (from, to)| {
        assert!(text.contains(from), "{from:?} is not in the policy");
        text.replace(from, to)
    });
    let path = journey.file("policy.toml");
    std::fs::write(&path, text).unwrap();
    path
}

#[test]
fn the_policies_that_come_along_are_valid() {
    for name in ["private", "paper", "fast"] {
        let read = Policy::from_file(&policy(name)).unwrap();
        assert_eq!(read.file, policy(name));
        // By its name it is the same, wherever the program runs.
        let named = Policy::open(name.as_ref()).unwrap();
        // What gives the picture away is nobody's to have by a name.
        let gives_away = [SelfAttention::Tiled, SelfAttention::Broadcast];
        let allowed = |how: &SelfAttention| named.self_attention.contains(how);
        assert!(!gives_away.iter().any(allowed), "{name}");
        assert_eq!(named.file.to_str(), Some(name));
        assert_eq!(
            Policy {
                file: read.file.clone(),
                ..named
            },
            read
        );
    }
}

/// Nobody listens: had anything been sent, the error would say that.
#[tokio::test(flavor = "multi_thread")]
async fn two_workers_of_one_provider_are_one_view() {
    let dead = dead_urls::<4>().await;
    let workers = dead.each_ref().map(|url| (url.as_str(), None));
    let journey = journey();
    let with = |provider: fn(usize) -> String| {
        let fleet = fleet_file_of(&journey.file(""), &workers, provider);
        journey
            .clone()
            .with("--workers", fleet)
            .with("--policy", policy("private"))
    };
    let error = with(|i| format!("p{}", i.max(1))).go().await.err().unwrap();
    assert_names(&error, &["private.toml", "max_rows = 0.25", "provider p1"]);
    assert!(!dead.iter().any(|url| error.contains(url)), "{error}");
    let error = with(|i| format!("p{i}")).go().await.err().unwrap();
    // Four providers with a quarter of the rows each; that nobody answers comes later.
    assert_names(&error, &["does not answer"]);
    assert!(dead.iter().any(|url| error.contains(url)), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rule_that_nothing_keeps_is_named() {
    let dead = dead_urls::<4>().await;
    let journey = journey();
    let workers = dead.each_ref().map(|url| (url.as_str(), None));
    let fleet = fleet_file(&journey.file(""), &workers);
    let journey = journey.with("--workers", fleet);
    for (changes, scheme, rule) in [
        (&[("0.25", "0.2")][..], "resident", "max_rows = 0.2"),
        (&[], "ppidm", "prompt = hidden"),
        (
            &[
                ("[\"f32\", \"f16\"]", "[\"f16\"]"),
                ("{ psnr = 60.0 }", "\"exact\""),
            ],
            "resident",
            "quality",
        ),
        (
            &[
                ("\"hidden\"", "\"shared\""),
                ("[\"f32\", \"f16\"]", "[\"f16\"]"),
            ],
            "ppidm",
            "wires",
        ),
    ] {
        let file = changed(&journey, changes);
        let journey = journey
            .clone()
            .with("--policy", file)
            .with("--scheme", scheme);
        let error = journey.go().await.err().unwrap();
        assert_names(&error, &["forbids it by its rule", rule]);
        assert!(!dead.iter().any(|url| error.contains(url)), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_file_that_is_wrong_is_named() {
    let journey = journey();
    for (from, to, parts) in [
        (
            "max_rows = 0.25",
            "max_rows = 0",
            &["max_rows", "above 0"][..],
        ),
        (
            "max_rows = 0.25",
            "max_rows = 1.5",
            &["max_rows", "at most 1"],
        ),
        ("max_rows", "most_rows", &["most_rows"]),
        ("\"hidden\"", "\"secret\"", &["secret"]),
        ("[\"f32\", \"f16\"]", "[]", &["wires"]),
    ] {
        let file = changed(&journey, &[(from, to)]);
        let error = journey
            .clone()
            .with("--policy", file)
            .go()
            .await
            .err()
            .unwrap();
        assert_names(&error, &["policy.toml"]);
        assert_names(&error, parts);
    }
    let missing = journey
        .with("--policy", "/nowhere.toml")
        .go()
        .await
        .err()
        .unwrap();
    assert_names(&missing, &["/nowhere.toml"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_ledger_of_a_run_is_what_the_policy_allowed() {
    let running = four_workers().await;
    let urls = running.each_ref().map(|w| (w.url.as_str(), None));
    let journey = journey();
    let fleet = fleet_file_of(&journey.file(""), &urls, |i| format!("p{}", i / 2));
    let journey = journey.with("--workers", fleet);
    let number = |value: &Value| value.as_f64().unwrap();

    let halves = changed(&journey, &[("0.25", "0.5")]);
    let files = journey.clone().with("--policy", halves).go().await.unwrap();
    let report = files.report();
    for provider in ["p0", "p1"] {
        let view = &report["ledger"][provider];
        assert_eq!(view["workers"], 2);
        assert!((number(&view["rows"]) - 0.5).abs() < 0.05, "{view}");
        assert!(number(&view["rows_with_halo"]) > number(&view["rows"]));
        assert_eq!(view["keys_and_values"], view["rows"]);
        assert_eq!(view["prompt"], false);
    }
    // Both half types were allowed, and fewer bytes are faster.
    let kinds = &report["kinds"]["attention"];
    let ours = number(&kinds["payload_up"]);
    let exact = journey.clone().go().await.unwrap().report();
    assert_eq!(
        2.0 * ours,
        number(&exact["kinds"]["attention"]["payload_up"])
    );

    let paper = journey
        .with("--scheme", "ppidm")
        .go()
        .await
        .unwrap()
        .report();
    assert_eq!(paper["ledger"]["p0"]["prompt"], true);
}

/// An address that no packet is ever sent to: the system refuses to connect to the broadcast address. Still, it
/// is no loopback address.
const FAR: &str = "://255.255.255.255:7700/";

/// A fleet of `workers` workers that are not on this machine, at as many providers as `provider` names.
fn far_fleet(journey: &Journey, workers: usize, provider: fn(usize) -> String) -> PathBuf {
    let url = format!("http{FAR}");
    // Several of one file: each in a folder of its own.
    let folder = tempfile::tempdir_in(journey.file("")).unwrap().keep();
    fleet_file_of(&folder, &vec![(url.as_str(), None); workers], provider)
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_is_shown_more_than_private_allows_unless_it_is_asked_for() {
    let journey = journey();
    // Whose they are is all that counts: workers of one provider at one address are one view anyway.
    for workers in [1, 2] {
        let fleet = far_fleet(&journey, workers, |_| "p".into());
        let journey = journey.clone().with("--workers", fleet);
        let error = journey.go().await.err().unwrap();
        let parts = [
            "the policy private",
            "max_rows = 0.25",
            "provider p",
            "100.0 %",
        ];
        assert_names(&error, &parts);
        assert_names(
            &error,
            &["--max-rows 1,", "all of the picture", "--scheme local"],
        );
        assert!(!error.contains("does not answer"), "{error}");
        // Half of the rows is not enough for one provider, whatever the number of its workers.
        let error = journey.clone().with("--max-rows", "0.5").go().await;
        assert_names(&error.err().unwrap(), &["max_rows = 0.5", "--max-rows 1,"]);
        for (flag, value) in [("--max-rows", "1"), ("--policy", "fast")] {
            let error = journey.clone().with(flag, value).go().await.err().unwrap();
            assert_names(&error, &["does not answer"]);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_papers_scheme_on_providers_is_asked_for_by_name() {
    let journey = journey()
        .with("--scheme", "ppidm")
        .with("--groupnorm", "exact");
    let fleet = far_fleet(&journey, 1, |_| "p".into());
    let journey = journey.with("--workers", fleet).with("--max-rows", "1");
    let error = journey.go().await.err().unwrap();
    assert_names(&error, &["the policy private", "prompt = hidden"]);
    let error = journey.with("--policy", "paper").go().await.err().unwrap();
    assert_names(&error, &["does not answer"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_evaluation_keeps_to_the_policy_too() {
    let journey = journey();
    let folder = journey.file("");
    let fleet = far_fleet(&journey, 1, |_| "p".into());
    std::fs::write(folder.join("prompts.txt"), "a red circle\n").unwrap();
    let eval = |out: &str, more: &[&str]| {
        let mut arguments: Vec<std::ffi::OsString> = vec!["eval".into(), "--model".into()];
        arguments.push(tests::golden::model_dir(MODEL).into());
        for (flag, value) in [
            ("--prompts", folder.join("prompts.txt")),
            ("--workers", fleet.clone()),
            ("--out", folder.join(out)),
            ("--device", "cpu".into()),
            ("--schemes", "resident".into()),
            ("--steps", "2".into()),
        ] {
            arguments.extend([flag.into(), value.into_os_string()]);
        }
        arguments.extend(more.iter().map(Into::into));
        lacuna(arguments)
    };
    let error = eval("a", &[]).await.unwrap_err();
    assert_names(&error, &["resident", "the policy private", "--max-rows 1,"]);
    assert!(!error.contains("does not answer"), "{error}");
    let error = eval("b", &["--max-rows", "1"]).await.unwrap_err();
    assert!(!error.contains("policy"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn no_command_sends_a_token_by_plain_http_over_a_network() {
    let journey = journey();
    let url = format!("http{FAR}");
    let fleet = fleet_file(&journey.file(""), &[(url.as_str(), Some("secret"))]);
    let path = fleet.to_str().unwrap();
    let model = tests::golden::model_dir(MODEL);
    let model = model.to_str().unwrap();
    for command in [
        &["generate", "a red circle", "--model", model][..],
        &["workers"],
        &["plan", "--measure", "--model", model],
        &[
            "eval",
            "--prompts",
            path,
            "--out",
            path,
            "--schemes",
            "resident",
            "--model",
            model,
        ],
    ] {
        let run = |more: &[&str]| {
            let arguments = [command, &["--workers", path], more].concat();
            lacuna(arguments.into_iter().map(str::to_owned).collect::<Vec<_>>())
        };
        let error = run(&[]).await.unwrap_err();
        assert_names(&error, &["plain HTTP", "https", "--insecure"]);
        assert!(!error.contains("secret"), "{error}");
        let error = run(&["--insecure"]).await.unwrap_err();
        assert!(!error.contains("plain HTTP"), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_asked_for_beside_a_policy_is_kept_or_refused() {
    let running = four_workers().await;
    let urls = running.each_ref().map(|w| (w.url.as_str(), None));
    let journey = journey();
    let fleet = fleet_file(&journey.file(""), &urls);
    let journey = journey.with("--workers", fleet);
    let payload = |files: &tests::journey::Files| {
        let report = files.report();
        report["kinds"]["attention"]["payload_up"].as_f64().unwrap()
    };
    // Workers on this machine are nobody else's: no policy, and nothing is rounded.
    let own = payload(&journey.clone().go().await.unwrap());
    let private = journey
        .with("--policy", "private")
        .with("--self-attention", "paired");
    let planned = payload(&private.clone().go().await.unwrap());
    assert_eq!(own, 2.0 * planned);
    let asked = private.clone().with("--wire", "f32").go().await.unwrap();
    assert_eq!(own, payload(&asked));
    for (flag, value, rule) in [
        ("--wire", "delta4", "wires"),
        ("--self-attention", "broadcast", "self_attention"),
        ("--workers-prompt", "shared", "prompt = hidden"),
    ] {
        let error = private.clone().with(flag, value).go().await.err().unwrap();
        assert_names(&error, &["the policy private", rule]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_plan_command_plans() {
    let model = repository().join("configs/models/sd15");
    let plan = |more: &[&str]| {
        let mut arguments = vec![
            "plan".to_owned(),
            "--model".into(),
            model.display().to_string(),
        ];
        arguments.extend(["--policy".into(), policy("private").display().to_string()]);
        arguments.extend(more.iter().map(|a| (*a).to_owned()));
        lacuna(arguments)
    };
    plan(&[]).await.unwrap();
    plan(&["--json", "--workers", "8"]).await.unwrap();
    // Of two nothing but shares is allowed.
    plan(&["--workers", "2"]).await.unwrap();
    for (arguments, parts) in [
        (
            &["--workers", "1"][..],
            &["max_rows = 0.25", "nothing to share out"][..],
        ),
        (&["--workers", "0"], &["--workers 0"]),
        (&["--user-gflops=-1"], &["--user-gflops"]),
        (&["--measure"], &["--measure", "--fleet"]),
    ] {
        let error = plan(arguments).await.unwrap_err();
        assert_names(&error, parts);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_measured_link_is_no_faster_than_the_link() {
    let worker = RunningWorker::start("sd1", &Options::default()).await;
    let journey = journey();
    // Twice the same, which is one provider's then.
    let workers = [(worker.url.as_str(), None); 2];
    let fleet = fleet_file_of(&journey.file(""), &workers, |_| "p".into());
    let config = FleetConfig::from_file(&fleet).unwrap();
    let link = Link {
        uplink_mbps: 50.0,
        downlink_mbps: 100.0,
        rtt_ms: 8.0,
    };
    let emulated = EmulatedLink::start(&config, link).await.unwrap();
    let measured = measure(emulated.config()).await.unwrap();
    // A busy machine makes a link slower, never faster.
    let got = measured.link;
    assert!(got.rtt_ms >= link.rtt_ms, "{got:?}");
    for (got, most) in [
        (got.uplink_mbps, link.uplink_mbps),
        (got.downlink_mbps, link.downlink_mbps),
    ] {
        // The last piece is not waited for twice, so up to the delay's worth of bytes is for nothing.
        assert!(got > 0.0 && got < 1.15 * most, "{got} of {most}");
    }
    assert_eq!(measured.worker_gflops, [None, None]);
}
