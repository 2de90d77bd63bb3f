//! `lacuna metrics` from outside: figures on stdout, every bad picture named on stderr.

mod common;

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Output;

use common::lacuna;
use serde_json::Value;

/// Two folders of pictures.
struct Folders {
    folder: tempfile::TempDir,
}

impl Folders {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        for side in ["a", "b"] {
            std::fs::create_dir(folder.path().join(side)).unwrap();
        }
        Self { folder }
    }

    /// With `count` pairs of 16x12 pictures that differ by one in each byte.
    fn with_pairs(count: u8) -> Self {
        let folders = Self::new();
        for i in 0..count {
            folders.write("a", &format!("{i}.png"), 16, 12, i);
            folders.write("b", &format!("{i}.png"), 16, 12, i + 1);
        }
        folders
    }

    fn path(&self, side: &str) -> PathBuf {
        self.folder.path().join(side)
    }

    fn write(&self, side: &str, name: &str, width: u32, height: u32, shift: u8) {
        let file = std::fs::File::create(self.path(side).join(name)).unwrap();
        let mut encoder = png::Encoder::new(file, width, height);
        encoder.set_color(png::ColorType::Rgb);
        let mut writer = encoder.write_header().unwrap();
        let bytes = (0..width * height * 3).map(|i| (i * i % 101) as u8 + shift);
        writer.write_image_data(&bytes.collect::<Vec<_>>()).unwrap();
    }

    fn measure(&self, more: &[&str]) -> Output {
        let arguments = [self.path("a").into_os_string(), self.path("b").into()];
        let more = more.iter().map(|a| OsStr::new(a).to_owned());
        metrics(&arguments.into_iter().chain(more).collect::<Vec<_>>())
    }
}

fn metrics<A: AsRef<OsStr>>(arguments: &[A]) -> Output {
    lacuna().arg("metrics").args(arguments).output().unwrap()
}

fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// `10 log10(255^2)`: each byte is off by one.
const OFF_BY_ONE: f64 = 48.130_803_608_679_1;

#[test]
fn two_folders_give_means_and_a_row_for_each_pair() {
    let folders = Folders::with_pairs(20);
    let output = folders.measure(&["--json", "--each"]);
    assert!(output.status.success(), "{}", stderr(&output));
    let found = json(&output);
    assert_eq!(
        (&found["pairs"], &found["identical"]),
        (&20.into(), &0.into())
    );
    assert!((found["psnr"].as_f64().unwrap() - OFF_BY_ONE).abs() < 1e-9);
    let ssim = found["ssim"].as_f64().unwrap();
    assert!((0.99..1.0).contains(&ssim), "{ssim}");
    let each = found["each"].as_array().unwrap();
    assert_eq!(each.len(), 20);
    assert_eq!(each[1]["name"], "1");
    let mean = each
        .iter()
        .map(|e| e["ssim"].as_f64().unwrap())
        .sum::<f64>()
        / 20.0;
    assert!((mean - ssim).abs() < 1e-12);
    // What lacks its weights is left out, and says how to get them.
    for metric in ["lpips", "fid"] {
        let hint = found["left_out"][metric].as_str().unwrap();
        assert!(hint.contains("convert_metric_weights.py"), "{hint}");
        assert!(stderr(&output).contains(&format!("{metric} is left out")));
    }
    let table = String::from_utf8(folders.measure(&[]).stdout).unwrap();
    assert!(table.contains("psnr   48.1308 dB"), "{table}");
}

#[test]
fn two_files_are_a_pair_and_equal_ones_are_said_to_be() {
    let folders = Folders::with_pairs(2);
    let [a, b] = [
        folders.path("a").join("0.png"),
        folders.path("b").join("0.png"),
    ];
    let found = json(&metrics(&[&a, &b, Path::new("--json")]));
    assert!((found["psnr"].as_f64().unwrap() - OFF_BY_ONE).abs() < 1e-9);
    assert!(found["left_out"].get("fid").is_none());
    let found = json(&metrics(&[&a, &a, Path::new("--json")]));
    assert_eq!(
        (&found["psnr"], &found["identical"]),
        (&Value::Null, &1.into())
    );
    assert_eq!(found["ssim"], 1.0);
}

#[test]
fn bad_pictures_are_named_and_the_others_measured() {
    let folders = Folders::with_pairs(30);
    std::fs::write(folders.path("b").join("7.png"), b"no picture").unwrap();
    folders.write("b", "8.png", 12, 16, 0);
    std::fs::remove_file(folders.path("b").join("9.png")).unwrap();
    let png = std::fs::read(folders.path("a").join("10.png")).unwrap();
    std::fs::write(folders.path("a").join("10.png"), &png[..png.len() / 2]).unwrap();
    let output = folders.measure(&["--json"]);
    assert_eq!(output.status.code(), Some(1));
    let found = json(&output);
    assert_eq!(found["pairs"], 26);
    assert!((found["psnr"].as_f64().unwrap() - OFF_BY_ONE).abs() < 1e-9);
    let said = stderr(&output);
    for part in [
        "b/7.png: it is neither a PNG nor a JPEG file",
        "8: the pictures differ in size: 16x12 and 12x16",
        "a/9.png: the other folder has no picture of this name",
        "a/10.png: the PNG is damaged",
        "error: 4 of the pictures or pairs could not be measured",
    ] {
        assert!(said.contains(part), "{part:?} is not in: {said}");
    }
    assert_eq!(found["failed"].as_object().unwrap().len(), 4);
}

#[test]
fn what_cannot_be_compared_is_one_line() {
    let folders = Folders::with_pairs(2);
    let empty = Folders::new();
    let (a, file) = (folders.path("a"), folders.path("a").join("0.png"));
    let folder = |side: &str| folders.path(side).display().to_string();
    let weights = ["--weights", "/nowhere/at/all", "--metrics"];
    for (arguments, parts) in [
        (
            vec![a.clone(), file.clone()],
            vec!["one is a folder".to_owned()],
        ),
        (
            vec![a.clone(), empty.path("a")],
            vec![
                "there is no .png".into(),
                empty.path("a").display().to_string(),
            ],
        ),
        (
            vec![file.clone(), "/nowhere/at/all.png".into()],
            vec!["/nowhere/at/all.png".into()],
        ),
        (
            vec![
                a.clone(),
                a.clone(),
                weights[0].into(),
                weights[1].into(),
                weights[2].into(),
                "fid".into(),
            ],
            vec!["fid: there is no /nowhere/at/all/inception.safetensors".into()],
        ),
        (
            vec![file.clone(), file.clone(), "--metrics".into(), "kid".into()],
            vec!["give two folders".into()],
        ),
    ] {
        let output = metrics(&arguments);
        let said = stderr(&output);
        assert_eq!(output.status.code(), Some(1), "{said}");
        let error = said.lines().last().unwrap();
        assert!(error.starts_with("error: "), "{said}");
        assert!(!said.contains("panicked"), "{said}");
        for part in parts {
            assert!(error.contains(&part), "{part:?} is not in: {said}");
        }
    }
    // A damaged weight file is named, not taken for one that is missing.
    let weights = folders.path("weights");
    std::fs::create_dir(&weights).unwrap();
    std::fs::write(weights.join("lpips-alex.safetensors"), b"no weights").unwrap();
    let output = metrics(&[
        folder("a"),
        folder("b"),
        "--weights".into(),
        weights.display().to_string(),
    ]);
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(1));
    assert!(said.contains("lpips-alex.safetensors is damaged"), "{said}");
}
