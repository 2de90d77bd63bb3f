//! Metrics against scikit-image, Pillow, lpips, pytorch-fid, clean-fid and torchmetrics.

use std::path::Path;

use burn::tensor::Device;
use lacuna_instruments::metrics::clip_score::ClipScore;
use lacuna_instruments::metrics::decode::Rgb8;
use lacuna_instruments::metrics::demo::DemoFeatures;
use lacuna_instruments::metrics::folder::Folder;
use lacuna_instruments::metrics::frechet::{FeatureStatistics, frechet_distance};
use lacuna_instruments::metrics::inception::{Inception, InputResize, Prepared};
use lacuna_instruments::metrics::kid::{Subsets, kernel_distance};
use lacuna_instruments::metrics::lpips::{Lpips, Net};
use lacuna_instruments::metrics::psnr::psnr;
use lacuna_instruments::metrics::sets::{FeatureNetwork, SetFeatures};
use lacuna_instruments::metrics::ssim::ssim;
use serde_json::Value;
use tests::golden::{model_dir, repository};
use tests::metric_inputs::{features, picture, write_weights};

const RESIZES: [InputResize; 3] = [
    InputResize::Clean,
    InputResize::Pytorch,
    InputResize::Torchmetrics,
];

fn golden() -> Value {
    let path = repository().join("tests/goldens/metrics.json");
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn size(case: &Value) -> [usize; 2] {
    serde_json::from_value(case["size"].clone()).unwrap()
}

fn numbers(list: &Value) -> Vec<f64> {
    serde_json::from_value(list.clone()).unwrap()
}

/// The largest difference, in units of the largest number wanted.
fn difference(got: &[f32], want: &[f64]) -> f64 {
    assert_eq!(got.len(), want.len());
    let largest = want.iter().fold(0.0f64, |most, w| most.max(w.abs()));
    let off = got.iter().zip(want).map(|(g, w)| (f64::from(*g) - w).abs());
    off.fold(0.0, f64::max) / largest
}

#[test]
fn psnr_and_ssim_are_those_of_scikit_image() {
    let golden = golden();
    for case in golden["pairs"].as_array().unwrap() {
        let (a, b) = (picture(size(case), "a"), picture(size(case), "b"));
        for (name, got) in [("psnr", psnr(&a, &b)), ("ssim", ssim(&a, &b))] {
            let off = got.unwrap() - case[name].as_f64().unwrap();
            assert!(off.abs() < 1e-9, "{name} of {case}: off by {off:e}");
        }
    }
}

#[test]
fn distances_of_features_are_those_of_the_packages() {
    let golden = &golden()["distances"];
    let set = |name: &str, count: usize, add: f32| -> Vec<f32> {
        features(name, count, 48).iter().map(|x| x + add).collect()
    };
    let frechet = |a: &[f32], b: &[f32]| {
        let [a, b] = [a, b].map(|rows| {
            let mut statistics = FeatureStatistics::new(48);
            statistics.add(rows).unwrap();
            statistics
        });
        frechet_distance(&a, &b).unwrap()
    };
    let (a, b) = (set("large a", 400, 0.0), set("large b", 300, 0.5));
    for package in ["clean_fid", "pytorch_fid"] {
        let ratio = frechet(&a, &b) / golden[package].as_f64().unwrap();
        assert!((ratio - 1.0).abs() < 1e-6, "{package}: {ratio}");
    }
    let few = frechet(&set("small a", 20, 0.0), &set("small b", 30, 0.5));
    let ratio = few / golden["small"].as_f64().unwrap();
    assert!(
        (ratio - 1.0).abs() < 1e-6,
        "fewer vectors than values: {ratio}"
    );

    let subsets = Subsets {
        count: 5,
        size: 50,
        seed: 3,
    };
    let kid = kernel_distance(&a, &b, 48, subsets).unwrap();
    let ratio = kid.mean / golden["kid"].as_f64().unwrap();
    assert!((ratio - 1.0).abs() < 1e-9, "kid: {ratio}");
}

#[test]
fn resizing_is_that_of_the_packages() {
    let golden = golden();
    let stride = golden["strides"]["resized"].as_u64().unwrap() as usize;
    for case in golden["resized"].as_array().unwrap() {
        let picture = picture(size(case), "resize");
        for resize in RESIZES {
            let input = resize.prepare(&picture);
            let some: Vec<f32> = input.into_iter().step_by(stride).collect();
            let off = difference(&some, &numbers(&case["values"][resize.to_string()]));
            println!("{resize} of {:?}: {off:.1e}", size(case));
            // Pillow sums in f64, as we do; torch places its pixels in f32.
            let allowed = match resize {
                InputResize::Clean => 1e-7,
                InputResize::Pytorch | InputResize::Torchmetrics => 1e-4,
            };
            assert!(off <= allowed, "{resize} of {:?}: {off:e}", size(case));
        }
    }
}

/// The network of the goldens.
fn inception(golden: &Value) -> Inception {
    let shapes = &golden["inception"]["parameters"];
    let shapes: Vec<_> = serde_json::from_value(shapes.clone()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let file = write_weights(folder.path(), "inception.safetensors", &shapes);
    Inception::load(&file, &Device::flex()).unwrap()
}

#[test]
fn inception_features_are_those_of_the_packages() {
    let golden = &golden();
    let case = &golden["inception"];
    let inception = inception(golden);
    let picture = picture(size(case), "inception");
    let stride = golden["strides"]["features"].as_u64().unwrap() as usize;
    for resize in RESIZES {
        let all = inception.features_of(std::slice::from_ref(&picture), resize);
        let all = all.unwrap();
        assert_eq!(all.len(), 2048);
        let some: Vec<f32> = all.into_iter().step_by(stride).collect();
        let off = difference(&some, &numbers(&case["features"][resize.to_string()]));
        println!("{resize}: {off:.1e}");
        assert!(off < 1e-4, "{resize}: {off:e}");
    }
}

#[test]
fn a_set_has_the_features_of_its_pictures_and_names_the_bad_one() {
    let inception = inception(&golden());
    let folder = tempfile::tempdir().unwrap();
    let pictures = ["x", "y", "z"].map(|name| picture([40, 30], name));
    for (i, picture) in pictures.iter().enumerate() {
        write_png(&folder.path().join(format!("{i}.png")), picture);
    }
    std::fs::write(folder.path().join("1x.png"), b"no picture").unwrap();
    let paths = Folder::list(folder.path()).unwrap().paths();
    let mut bad = Vec::new();
    let network = Prepared {
        inception: &inception,
        resize: InputResize::Clean,
    };
    let set = SetFeatures::of(&paths, &network, true, |fault| bad.push(fault)).unwrap();
    let want = inception.features_of(&pictures, network.resize).unwrap();
    assert_eq!((set.statistics.count(), set.kept), (3, want));
    assert_eq!(bad.len(), 1);
    assert!(bad[0].picture.ends_with("1x.png"), "{bad:?}");
}

#[test]
fn demo_features_are_those_of_the_network_that_was_trained() {
    let case = &golden()["demo"];
    let shapes: Vec<_> = serde_json::from_value(case["parameters"].clone()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let file = write_weights(folder.path(), "demo.safetensors", &shapes);
    let network = DemoFeatures::load(&file, &Device::flex()).unwrap();
    let input = network.prepare(&picture(size(case), "demo"));
    let features = network.features(&[input]).unwrap();
    assert_eq!(features.len(), network.len());
    let off = difference(&features, &numbers(&case["features"]));
    assert!(off < 1e-4, "{off:e}");
}

#[test]
fn clip_scores_are_those_of_transformers() {
    let case = &golden()["clip"];
    let shapes: Vec<_> = serde_json::from_value(case["parameters"].clone()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path();
    write_weights(dir, "model.safetensors", &shapes);
    std::fs::write(dir.join("config.json"), case["config"].to_string()).unwrap();
    for file in std::fs::read_dir(model_dir("sd1").join("tokenizer")).unwrap() {
        let file = file.unwrap();
        std::fs::copy(file.path(), dir.join(file.file_name())).unwrap();
    }
    let clip = ClipScore::load(dir, &Device::flex()).unwrap();
    for case in case["cases"].as_array().unwrap() {
        let prompt = case["prompt"].as_str().unwrap();
        let got = clip.score(&picture(size(case), "clip"), prompt).unwrap();
        let want = case["score"].as_f64().unwrap();
        println!(
            "{:?} {prompt:?}: {got:.4}, {:.1e} off",
            size(case),
            got - want
        );
        assert!(
            (got - want).abs() <= 1e-4 * want,
            "{prompt:?}: {got} for {want}"
        );
    }
}

fn write_png(path: &Path, picture: &Rgb8) {
    let file = std::fs::File::create(path).unwrap();
    let mut encoder = png::Encoder::new(file, picture.width as u32, picture.height as u32);
    encoder.set_color(png::ColorType::Rgb);
    let mut writer = encoder.write_header().unwrap();
    writer.write_image_data(&picture.bytes).unwrap();
}

#[test]
fn lpips_is_that_of_its_package() {
    let golden = &golden()["lpips"];
    for net in [Net::Alex, Net::Vgg] {
        let case = &golden[net.to_string()];
        let shapes: Vec<_> = serde_json::from_value(case["parameters"].clone()).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let file = write_weights(folder.path(), "lpips.safetensors", &shapes);
        let lpips = Lpips::load(&file, net, &Device::flex()).unwrap();
        for pair in case["pairs"].as_array().unwrap() {
            let (a, b) = (picture(size(pair), "a"), picture(size(pair), "b"));
            let ratio = lpips.distance(&a, &b).unwrap() / pair["distance"].as_f64().unwrap();
            println!("{net} of {:?}: {:.1e}", size(pair), ratio - 1.0);
            assert!((ratio - 1.0).abs() < 1e-4, "{net}: {ratio}");
            assert_eq!(lpips.distance(&a, &a).unwrap(), 0.0);
        }
        let small = picture([15, 40], "a");
        let error = lpips.distance(&small, &small).unwrap_err().to_string();
        assert!(error.contains("15x40"), "{error}");
    }
}

#[test]
fn a_jpeg_decodes_as_pillow_does_it() {
    let folder = repository().join("tests/goldens");
    let ours = Rgb8::read(&folder.join("metrics.jpg")).unwrap();
    let theirs = Rgb8::read(&folder.join("metrics-jpg.png")).unwrap();
    assert_eq!((ours.width, ours.height), (50, 40));
    let off = ours
        .bytes
        .iter()
        .zip(&theirs.bytes)
        .map(|(a, b)| a.abs_diff(*b));
    let most = off.max().unwrap();
    println!(
        "largest difference of a byte: {most}; {:.1} dB",
        psnr(&ours, &theirs).unwrap()
    );
    // Decoders spread the halved colours over pixels in their own ways.
    assert!(most <= 4, "{most}");
}
