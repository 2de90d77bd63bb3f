//! `lacuna bench` from its command line to its table, JSON and plot.

mod common;

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use common::lacuna;
use lacuna_model::unet::UNetConfig;
use lacuna_orchestrator::schemes::registry::find;
use lacuna_orchestrator::schemes::{Setting, Sizes};
use serde_json::Value;

/// Tokens of any prompt.
const TOKENS: usize = 77;

fn tiny(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../tests/goldens/models")
        .join(path)
}

/// Runs `lacuna bench` with nothing of ours in its environment.
fn bench(arguments: &[&str]) -> Output {
    let arguments = ["bench", "--device", "cpu"].iter().chain(arguments);
    lacuna().args(arguments).output().unwrap()
}

#[track_caller]
fn json(arguments: &[&str]) -> Value {
    let output = bench(&[arguments, &["--json"]].concat());
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{stderr}");
    serde_json::from_slice(&output.stdout).unwrap()
}

#[track_caller]
fn refused(arguments: &[&str], part: &str) {
    let output = bench(arguments);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success(), "{arguments:?}");
    assert!(stderr.contains(part), "{part:?} is not in: {stderr}");
    assert!(!stderr.contains("panicked"), "{stderr}");
    assert!(output.stdout.is_empty());
}

fn rows(report: &Value) -> &[Value] {
    report["rows"].as_array().unwrap()
}

/// Scheme, workers and wire of each row.
fn names(report: &Value) -> Vec<String> {
    let name = |row: &Value| {
        let wire = row["wire"].as_str().unwrap_or_default();
        format!(
            "{} {} {wire}",
            row["scheme"].as_str().unwrap(),
            row["workers"]
        )
    };
    rows(report).iter().map(name).collect()
}

/// The tensors' bytes of each row, and the work, are those that `lacuna cost` counts for a call in the
/// middle of a picture: there is one figure for a U-Net's work.
#[track_caller]
fn assert_row_as_counted(report: &Value, config: &Path) {
    let unet = UNetConfig::from_file(config).unwrap().build();
    let side = |key: &str| report["subject"][key].as_u64().unwrap() as usize;
    for row in rows(report) {
        let entry = find(row["scheme"].as_str().unwrap()).unwrap();
        let wire = row["wire"].as_str();
        let options = wire.map(|wire| ("wire".to_owned(), wire.to_owned()));
        let options: Vec<_> = options.into_iter().collect();
        let setting = Setting {
            scheme: entry.with_options(&options).unwrap(),
            sizes: Sizes {
                latents: ["batch", "latent_rows", "latent_columns"].map(side),
                levels: unet.levels(),
                tokens: TOKENS,
            },
            adapted: false,
        };
        let workers = row["workers"].as_u64().unwrap() as usize;
        let count = setting.count(&unet, workers).unwrap();
        let sent = ["payload_bytes_up_per_call", "payload_bytes_down_per_call"];
        assert_eq!(
            sent.map(|key| row[key].as_u64().unwrap()),
            count.total(),
            "{row}"
        );
        assert_eq!(row["round_trips_per_call"], count.round_trips());
        let work = [
            ("user_gflop_per_call", count.user_flop),
            ("workers_gflop_per_call", count.workers_flop.iter().sum()),
        ];
        for (key, flop) in work {
            let (got, want) = (row[key].as_f64().unwrap(), flop as f64 / 1e9);
            // A worker's share of an odd number of rows is cut to a whole operation.
            assert!((got - want).abs() <= 1e-6 * want, "{key} {want}: {row}");
        }
        let all = row["bytes_up_per_call"].as_u64().unwrap();
        assert!(all >= count.total()[0], "{row}");
    }
}

/// Whether every `<x>` has its `</x>`, there is text in it, and no number is missing.
#[track_caller]
fn assert_svg(path: &Path, parts: &[&str]) {
    let svg = std::fs::read_to_string(path).unwrap();
    assert!(svg.trim_start().starts_with("<svg"), "{svg}");
    assert!(svg.trim_end().ends_with("</svg>"), "{svg}");
    for tag in ["text", "svg"] {
        let opened = svg.matches(&format!("<{tag} ")).count();
        assert!(opened > 0, "no {tag}");
        assert_eq!(opened, svg.matches(&format!("</{tag}>")).count(), "{tag}");
    }
    assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
    for part in parts {
        assert!(svg.contains(part), "{part:?} is not in: {svg}");
    }
}

#[test]
fn random_weights_give_every_row_its_bytes_and_quality() {
    let folder = tempfile::tempdir().unwrap();
    let plot = folder.path().join("bench.svg");
    let config = tiny("sd1/unet/config.json");
    let report = json(&[
        "--config",
        config.to_str().unwrap(),
        "--size",
        "128x128",
        "--batch",
        "1",
        "--workers",
        "1,2",
        "--wires",
        "f32,delta4",
        "--link",
        "lan",
        "--plot",
        plot.to_str().unwrap(),
    ]);
    assert_eq!(
        names(&report),
        [
            "local 0 ",
            "ppidm 1 ",
            "ppidm 2 ",
            "resident 1 f32",
            "resident 1 delta4",
            "resident 2 f32",
            "resident 2 delta4",
        ]
    );
    assert_row_as_counted(&report, &config);
    let rows = rows(&report);
    assert_eq!(rows[0]["psnr_db"], Value::Null);
    assert_eq!(rows[0]["identical_to_local"], true);
    assert_eq!(rows[0]["ratio_to_first_row"], 1.0);
    for row in rows {
        let exact = row["wire"] != "delta4";
        // No number where the bits are equal.
        let psnr = row["psnr_db"].as_f64();
        assert_eq!(psnr.is_none(), row["identical_to_local"] == true, "{row}");
        assert_eq!(psnr.is_none_or(|db| db > 100.0), exact, "{row}");
        assert!(row["seconds_per_call_median"].as_f64().unwrap() > 0.0);
        assert!(row["user_gflop_per_call"].as_f64().unwrap() > 0.0);
        let work = row["workers_gflop_per_call"].as_f64().unwrap();
        assert_eq!(work > 0.0, row["workers"] != 0, "{row}");
    }
    assert_eq!(report["link"]["uplink_mbps"], 10_000.0);
    assert_svg(
        &plot,
        &[
            "resident, 2 workers, paired, delta4",
            "10000 Mbit/s",
            "seconds",
            "megabytes",
        ],
    );
}

#[test]
fn every_process_has_a_peak() {
    let model = tiny("sd2");
    let report = json(&[
        "--model",
        model.to_str().unwrap(),
        "--prompt",
        "a red circle",
        "--steps",
        "3",
        "--schemes",
        "local,resident",
        "--workers",
        "2",
        "--separate",
    ]);
    assert_eq!(names(&report), ["local 0 ", "resident 2 f32"]);
    assert_row_as_counted(&report, &model.join("unet/config.json"));
    let [local, resident] = rows(&report) else {
        panic!("{report}")
    };
    assert!(
        resident["psnr_db"].as_f64().is_none_or(|db| db > 100.0),
        "{resident}"
    );
    assert_eq!(report["separate"], true);
    if cfg!(target_os = "linux") {
        assert_eq!(
            local["peak_memory"]["workers_bytes"],
            Value::Array(Vec::new())
        );
        let workers = resident["peak_memory"]["workers_bytes"].as_array().unwrap();
        assert_eq!(workers.len(), 2);
        let own = &resident["peak_memory"]["orchestrator_bytes"];
        for bytes in workers.iter().chain([own]) {
            assert!(bytes.as_u64().unwrap() > 1 << 20, "{resident}");
        }
    }
}

#[test]
fn a_worker_ends_with_the_input_of_its_process() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lacuna"));
    command.args(["bench-worker", "--device", "cpu", "--batch", "1"]);
    command.args(["--rows", "8", "--columns", "8", "--model"]);
    command.arg(tiny("sd1"));
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut worker = command.spawn().unwrap();
    let mut line = String::new();
    let stdout = worker.stdout.as_mut().unwrap();
    BufReader::new(stdout).read_line(&mut line).unwrap();
    let (url, token) = line.trim().split_once(' ').unwrap();
    assert!(url.starts_with("http://127.0.0.1:"), "{line}");
    assert!(token.len() >= 32, "{line}");
    assert_eq!(worker.try_wait().unwrap(), None);
    drop(worker.stdin.take());
    assert!(worker.wait().unwrap().success());
}

/// SDXL's second input, on a U-Net small enough to try.
#[test]
fn a_config_that_wants_added_conditioning_gets_some() {
    let folder = tempfile::tempdir().unwrap();
    let text = std::fs::read_to_string(tiny("sd1/unet/config.json")).unwrap();
    let mut config: serde_json::Map<String, Value> = serde_json::from_str(&text).unwrap();
    config.insert("addition_embed_type".into(), "text_time".into());
    config.insert("addition_time_embed_dim".into(), 8.into());
    config.insert(
        "projection_class_embeddings_input_dim".into(),
        (6 * 8 + 20).into(),
    );
    let path = folder.path().join("config.json");
    std::fs::write(&path, Value::Object(config).to_string()).unwrap();
    let arguments = ["--config", path.to_str().unwrap(), "--size", "128x128"];
    let report = json(
        &[
            &arguments[..],
            &[
                "--calls",
                "1",
                "--workers",
                "2",
                "--schemes",
                "local,resident,blind:share-bits=quality;share-layers=all,\
                 blind:shares=ring;share-bits=quality;share-layers=all",
            ],
        ]
        .concat(),
    );
    let rows = rows(&report);
    assert_eq!(rows.len(), 4);
    for (row, least) in rows[1..].iter().zip([100.0, 50.0, 50.0]) {
        let psnr = row["psnr_db"].as_f64();
        assert!(psnr.is_none_or(|db| db > least), "{row}");
    }
    // Of shares nothing is to the bit.
    assert!(rows[2]["psnr_db"].is_f64(), "{}", rows[2]);
}

#[test]
fn the_table_has_a_line_for_each_row() {
    let config = tiny("sd1/unet/config.json");
    let size = ["--size", "128x128", "--calls", "1", "--workers", "2"];
    let output = bench(&[&["--config", config.to_str().unwrap()], &size[..]].concat());
    assert!(output.status.success(), "{output:?}");
    let stdout = String::from_utf8(output.stdout).unwrap();
    for label in [
        "local ",
        "ppidm, 2 workers ",
        "resident, 2 workers, paired, f32 ",
    ] {
        let lines = stdout.lines().filter(|line| line.starts_with(label));
        assert_eq!(lines.count(), 1, "{label}: {stdout}");
    }
}

#[test]
fn a_file_and_adapters_are_timed_as_generate_takes_them() {
    let [file, folder] = ["../one-file/sd1.safetensors", "sd1"].map(tiny);
    let [file, folder] = [&file, &folder].map(|path| path.to_str().unwrap());
    let model = ["--model", file, "--model-config", folder, "--steps", "2"];
    let ways = ["--schemes", "local,resident", "--workers", "1"];
    let separate = ["--separate"];
    let report = json(&[&model[..], &ways, &separate].concat());
    let whole = json(&[&["--model", folder, "--steps", "2"][..], &ways].concat());
    assert_eq!(
        report["subject"]["weights"], whole["subject"]["weights"],
        "{report}"
    );
    assert_eq!(rows(&report)[1]["identical_to_local"], true, "{report}");
    refused(
        &["--model", folder, "--model-config", folder],
        "--model-config",
    );

    let assets = concat!(env!("CARGO_MANIFEST_DIR"), "/../../assets");
    let adapter = format!("{assets}/demo-lcm-lora.safetensors:0.5");
    let demo = format!("{assets}/demo-model");
    let model = ["--model", &demo, "--steps", "2", "--guidance", "1"];
    let adapted = [&model[..], &["--turns", "1", "--workers", "2"]].concat();
    let with = |rest: &[&'static str]| [&adapted[..], &["--lora", &adapter], rest].concat();
    let own = json(&with(&["--schemes", "local,blind"]));
    assert!(rows(&own)[1]["psnr_db"].as_f64().unwrap() > 50.0, "{own}");
    let theirs = json(&with(&["--schemes", "local,resident", "--separate"]));
    assert_eq!(rows(&theirs)[1]["identical_to_local"], true, "{theirs}");
    let digest = &own["subject"]["weights"];
    assert_eq!(digest, &theirs["subject"]["weights"]);
    let bare = json(&[&adapted[..], &["--schemes", "local"]].concat());
    assert_ne!(digest, &bare["subject"]["weights"]);
    refused(
        &with(&["--schemes", "blind", "--separate"]),
        "under blind adapters (--lora) stay with you",
    );
}

#[test]
fn bad_arguments_are_named() {
    let config = tiny("sd1/unet/config.json");
    let config = config.to_str().unwrap();
    for (arguments, part) in [
        (&["--plot", "bench.png"][..], "ends in .svg"),
        (&["--plot", "/no/such/folder/bench.svg"], "cannot write"),
        (&["--workers", "0"], "--workers 0: from 1 to 16"),
        (&["--workers", "4,17"], "--workers 17"),
        (&["--calls", "0"], "--calls 0"),
        (&["--turns", "0"], "--turns 0"),
        (&["--rows", "0"], "--rows 0"),
        (&["--size", "0x8"], "--width 0"),
        (&["--size", "128x12"], "--height 12"),
        (&["--size", "8x8", "--rows", "8"], "--rows"),
        (&["--wires", "f31"], "f31"),
        (&["--self-attentions", "none"], "none"),
        (&["--link", "6g"], "6g"),
        (&["--steps", "3"], "--config"),
        (&["--model", "x"], "--config"),
        (&["--size", "64x64", "--workers", "16"], "16"),
        (&["--rows", "8", "--workers", "16"], "16"),
    ] {
        refused(&[&["--config", config], arguments].concat(), part);
    }
    refused(&["--model", "/nowhere"], "there is no model in /nowhere");
    refused(&["--config", "/nowhere.json"], "/nowhere.json");
    refused(&["--model", "/nowhere", "--calls", "2"], "--calls");
}
