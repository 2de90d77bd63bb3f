//! `lacuna eval`: many prompts under several settings, killed, resumed, and in shards.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use serde_json::Value;
use tests::golden::{model_dir, repository};
use tests::journey::lacuna;
use tests::metric_inputs::write_weights;

const PROMPTS: &str = "a red circle\na <b>blue</b> square\na \"green\", ring\n";

/// A folder with a prompt file, and runs in it.
struct Runs {
    folder: tempfile::TempDir,
}

impl Runs {
    fn new() -> Self {
        let runs = Self {
            folder: tempfile::tempdir().unwrap(),
        };
        runs.write("prompts.txt", PROMPTS);
        runs
    }

    fn write(&self, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        std::fs::write(&path, bytes).unwrap();
        path
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Two steps of a tiny model on two workers, into the directory `out`.
    async fn go(&self, out: &str, schemes: &str, more: &[&str]) -> Result<(), String> {
        let given = |flag: &str| more.contains(&flag);
        let mut arguments: Vec<OsString> = vec!["eval".into()];
        let mut add = |flag: &str, value: OsString| {
            if !given(flag) {
                arguments.extend([flag.into(), value]);
            }
        };
        add("--prompts", self.path("prompts.txt").into());
        add("--out", self.path(out).into());
        add("--schemes", schemes.into());
        add("--model", model_dir("odd").into());
        add("--weights", self.path("weights").into());
        for (flag, value) in [
            ("--device", "cpu"),
            ("--steps", "2"),
            ("--local-workers", "2"),
        ] {
            add(flag, value.into());
        }
        arguments.extend(more.iter().map(OsString::from));
        lacuna(arguments).await
    }

    fn text(&self, file: &str) -> String {
        let path = self.path(file);
        let text = std::fs::read_to_string(&path);
        text.unwrap_or_else(|e| panic!("{}: {e}", path.display()))
    }

    fn json(&self, file: &str) -> Value {
        serde_json::from_str(&self.text(file)).unwrap()
    }
}

#[track_caller]
fn assert_names(message: &str, parts: &[&str]) {
    for part in parts {
        assert!(message.contains(part), "{part:?} is not in: {message}");
    }
}

const RESULTS: [&str; 5] = [
    "rows.csv",
    "rows.json",
    "summary.json",
    "summary.md",
    "report.html",
];

/// What is to be the same however a run came to its end.
#[track_caller]
fn assert_same_results(runs: &Runs, a: &str, b: &str) {
    for name in RESULTS {
        let [a, b] = [a, b].map(|out| runs.text(&format!("{out}/{name}")));
        assert!(a == b, "{name} differs:\n{a}\n{b}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_gives_rows_means_and_a_report() {
    let runs = Runs::new();
    let schemes = "ppidm:groupnorm=local,resident:wire=f16,local";
    runs.go("out", schemes, &[]).await.unwrap();
    let rows = runs.json("out/rows.json");
    assert_eq!(rows.as_array().unwrap().len(), 9);
    assert_eq!(rows[2]["prompt"], "a \"green\", ring");
    assert_eq!(rows[2]["seed"], 44);
    assert_eq!(rows[8]["identical"], true);
    let csv = runs.text("out/rows.csv");
    assert_eq!(csv.lines().count(), 10);
    assert_names(&csv, &["\"a \"\"green\"\", ring\"", ",true,inf,1,"]);

    let summary = runs.json("out/summary.json");
    let arm = |i: usize| &summary["arms"][i];
    let mean = (0..3)
        .map(|i| rows[i]["psnr"].as_f64().unwrap())
        .sum::<f64>()
        / 3.0;
    assert!((arm(0)["psnr"].as_f64().unwrap() - mean).abs() < 1e-9);
    assert!(mean < 70.0, "local statistics lose quality: {mean}");
    assert_eq!(arm(2)["identical"], 3);
    assert!(arm(0)["lpips"].is_null(), "there are no weights");

    let report = runs.text("out/report.html");
    assert_names(
        &report,
        &["a &lt;b&gt;blue", "<svg", "data:image/png;base64,iVBOR"],
    );
    assert!(!report.contains("<b>blue"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_was_killed_goes_on_to_the_same_results() {
    let runs = Runs::new();
    let schemes = "ppidm:groupnorm=local,resident:wire=f16";
    runs.go("whole", schemes, &[]).await.unwrap();
    runs.go("killed", schemes, &[]).await.unwrap();
    assert_same_results(&runs, "whole", "killed");
    // As if it had been killed while it wrote its fourth row, and a picture before.
    let log = runs.text("killed/rows.jsonl");
    let end: usize = log.split_inclusive('\n').take(3).map(str::len).sum();
    runs.write("killed/rows.jsonl", &log[..end + 40]);
    let arm = "killed/pictures/resident_wire=f16";
    std::fs::remove_file(runs.path(&format!("{arm}/00001-43.png"))).unwrap();
    std::fs::remove_file(runs.path(&format!("{arm}/00002-44.png"))).unwrap();
    runs.write(&format!("{arm}/00001-43.png.partial"), b"\x89PNG");
    for name in RESULTS {
        std::fs::remove_file(runs.path(&format!("killed/{name}"))).unwrap();
    }
    let untouched = runs.path(&format!("{arm}/00000-42.png"));
    let made = std::fs::metadata(&untouched).unwrap().modified().unwrap();
    // Side by side they are the same pictures.
    let parallel = ["--parallel", "3"];
    runs.go("killed", schemes, &parallel).await.unwrap();
    assert_same_results(&runs, "whole", "killed");
    let now = std::fs::metadata(&untouched).unwrap().modified().unwrap();
    assert_eq!(made, now, "what is there is not made again");
}

/// Random weights of Inception.
fn write_inception(folder: &Path) {
    std::fs::create_dir(folder).unwrap();
    let golden = std::fs::read(repository().join("tests/goldens/metrics.json")).unwrap();
    let golden: Value = serde_json::from_slice(&golden).unwrap();
    let shapes = &golden["inception"]["parameters"];
    let shapes: Vec<_> = serde_json::from_value(shapes.clone()).unwrap();
    write_weights(folder, "inception.safetensors", &shapes);
}

#[tokio::test(flavor = "multi_thread")]
async fn shards_merge_to_what_one_run_gives() {
    let runs = Runs::new();
    write_inception(&runs.path("weights"));
    let schemes = "ppidm:groupnorm=local";
    let metrics = ["--metrics", "psnr,ssim,fid,kid"];
    runs.go("whole", schemes, &metrics).await.unwrap();
    for shard in ["0/2", "1/2"] {
        let out = format!("shard-{}", &shard[..1]);
        // One of them has a single picture, of which no covariance can be had.
        let more = ["--shard", shard, metrics[0], metrics[1]];
        runs.go(&out, schemes, &more).await.unwrap();
    }
    let merge = |shards: &'static [&'static str], out: &str| {
        let paths = shards.iter().map(|name| runs.path(name).into_os_string());
        let arguments: Vec<OsString> = ["eval".into(), "merge".into()]
            .into_iter()
            .chain(paths)
            .chain(["--out".into(), runs.path(out).into_os_string()])
            .collect();
        lacuna(arguments)
    };
    merge(&["shard-1", "shard-0"], "merged").await.unwrap();
    for name in ["rows.csv", "rows.json"] {
        let [whole, merged] = ["whole", "merged"].map(|out| runs.text(&format!("{out}/{name}")));
        assert_eq!(whole, merged, "{name}");
    }
    let [whole, merged] = ["whole", "merged"].map(|out| runs.json(&format!("{out}/summary.json")));
    for metric in ["psnr", "ssim"] {
        assert_eq!(whole["arms"][0][metric], merged["arms"][0][metric]);
    }
    for pointer in ["/arms/0/fid", "/arms/0/kid/mean"] {
        let value = |summary: &Value| summary.pointer(pointer).unwrap().as_f64().unwrap();
        let (whole, merged) = (value(&whole), value(&merged));
        assert!(whole != 0.0, "{pointer}: {whole}");
        let off = (merged / whole - 1.0).abs();
        assert!(off < 1e-9, "{pointer}: {merged} for {whole}");
    }
    let features = runs.path("shard-0/features/inception/reference.safetensors");
    let aside = runs.path("aside");
    std::fs::rename(&features, &aside).unwrap();
    let error = merge(&["shard-0", "shard-1"], "none").await.unwrap_err();
    assert_names(&error, &["0/2 is not finished", "reference.safetensors"]);
    std::fs::rename(&aside, &features).unwrap();
    let error = merge(&["shard-1"], "half").await.unwrap_err();
    assert_names(&error, &["0/2 is missing"]);
    let error = merge(&["shard-0", "shard-1"], "whole").await.unwrap_err();
    assert_names(&error, &["--out", "whole"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn given_pictures_are_compared_with_in_place_of_the_uncut_models() {
    let runs = Runs::new();
    runs.go("made", "ppidm:groupnorm=local", &[]).await.unwrap();
    let folder = runs.path("made/pictures/reference").display().to_string();
    let more = ["--reference", folder.as_str()];
    runs.go("given", "ppidm:groupnorm=local", &more)
        .await
        .unwrap();
    assert_eq!(runs.text("made/rows.csv"), runs.text("given/rows.csv"));
    assert!(!runs.path("given/pictures/reference").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn one_bad_prompt_is_named_and_the_others_are_made() {
    let runs = Runs::new();
    let bad = runs.write("bad.txt", b"a red circle\n\xff\na blue square\n");
    let bad = bad.display().to_string();
    let error = runs
        .go("out", "resident", &["--prompts", bad.as_str()])
        .await;
    assert_names(&error.unwrap_err(), &["1 of the pictures"]);
    let summary = runs.json("out/summary.json");
    assert_eq!(summary["arms"][0]["pictures"], 2);
    assert_eq!(summary["failed"][0]["index"], 1);
    let csv = runs.text("out/rows.csv");
    assert_names(&csv, &["line 2 is no UTF-8"]);
    // It is tried again, and fails again.
    let error = runs
        .go("out", "resident", &["--prompts", bad.as_str()])
        .await;
    assert_names(&error.unwrap_err(), &["1 of the pictures"]);
    assert_eq!(runs.text("out/rows.csv"), csv);
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_input_is_named() {
    let runs = Runs::new();
    runs.go("out", "resident", &["--limit", "1"]).await.unwrap();
    let [empty, table] = [("empty.txt", " \n"), ("a.csv", "id,text\n1,one\n")]
        .map(|(name, text)| runs.write(name, text).display().to_string());
    for (schemes, more, parts) in [
        (
            "resident",
            vec!["--prompts", &empty],
            vec!["empty.txt", "no prompt"],
        ),
        (
            "resident",
            vec!["--prompts", &table],
            vec!["a.csv", "\"caption\"", "id, text"],
        ),
        ("resident", vec!["--shard", "2/2"], vec!["2/2", "i/n"]),
        ("resident", vec![], vec!["out", "prompts: 1 there, 3 here"]),
        (
            "resident",
            vec!["--limit", "1", "--steps", "3"],
            vec!["steps: 2 there, 3 here"],
        ),
        ("resident", vec!["--limit", "0"], vec!["--limit 0"]),
        ("residents", vec![], vec!["residents", "none of local"]),
        (
            "resident:workers=9",
            vec![],
            vec!["resident:workers=9", "4 rows"],
        ),
        (
            "resident",
            vec!["--limit", "1", "--local-workers", "3"],
            vec!["arms 1.workers: 2 there, 3 here"],
        ),
        (
            "resident:size=101x101",
            vec![],
            vec!["resident:size=101x101", "multiple"],
        ),
        ("ppidm:workers=17", vec![], vec!["17 workers", "16"]),
        (
            "ppidm",
            vec!["--metrics", "lpips"],
            vec!["lpips", "convert_metric_weights"],
        ),
        (
            "ppidm",
            vec!["--reference", "/nowhere"],
            vec!["--reference", "/nowhere"],
        ),
    ] {
        let error = runs.go("out", schemes, &more).await.unwrap_err();
        assert_names(&error, &parts);
    }
    let error = lacuna(["eval", "--schemes", "ppidm"]).await.unwrap_err();
    assert_names(&error, &["--out"]);
}
