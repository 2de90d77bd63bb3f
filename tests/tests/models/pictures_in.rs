//! Pictures that are made from pictures, against the reference library (`scripts/goldens/pictures_in.py`): whole, and cut.

use std::path::PathBuf;

use lacuna_orchestrator::init_image::read::read;
use lacuna_orchestrator::init_image::resize::resize;
use lacuna_wire::HostTensor;
use serde_json::{Value, json};
use tests::golden::{Golden, golden_png, model_dir};
use tests::journey::{Files, Journey, Png};
use tests::model_copy::ModelCopy;
use tests::reference::psnr;

/// Of 4-channel models, and of inpainting models.
const FROM_PICTURES: [&str; 7] = [
    "from-picture",
    "from-picture-resized",
    "from-picture-turned",
    "from-picture-xl",
    "from-picture-consistency",
    "masked",
    "masked-xl",
];
const INPAINTING: [&str; 2] = ["inpainting", "inpainting-xl"];

fn picture(name: &str) -> PathBuf {
    model_dir("").with_file_name("pictures").join(name)
}

/// The value of a flag that may be a picture.
fn value(flag: &str, value: &str) -> PathBuf {
    match flag {
        "--init-image" | "--mask" => picture(value),
        _ => value.into(),
    }
}

/// The flags of a case, and their values.
fn flags(case: &Value) -> Vec<(&str, PathBuf)> {
    let words: Vec<&str> = case
        .as_array()
        .unwrap()
        .iter()
        .map(|word| word.as_str().unwrap())
        .collect();
    let pairs = words.chunks(2);
    pairs
        .map(|pair| (pair[0], value(pair[0], pair[1])))
        .collect()
}

fn with(journey: Journey, flags: &[(&str, PathBuf)]) -> Journey {
    let each = flags.iter();
    each.fold(journey, |journey, (flag, value)| journey.with(flag, value))
}

/// The model of a case, as the script changes it.
fn model(golden: &Golden) -> ModelCopy {
    let case = golden.case();
    let copy = ModelCopy::of(case["name"].as_str().unwrap());
    for key in case["unset"].as_array().unwrap() {
        copy.set("vae/config.json", key.as_str().unwrap(), Value::Null);
    }
    if golden.has("unet.conv_in.weight") {
        let wide = golden.host("unet.conv_in.weight");
        let [_, channels, ..] = wide.dims::<4>().unwrap();
        copy.set("unet/config.json", "in_channels", channels.into());
        copy.set("model_index.json", "_class_name", case["class"].clone());
        let file = "unet/diffusion_pytorch_model.safetensors";
        copy.change_tensors(file, |tensors| {
            let conv_in = tensors.get_mut("conv_in.weight").unwrap();
            conv_in.shape = wide.shape.clone();
            conv_in.data = wide.data.iter().flat_map(|x| x.to_le_bytes()).collect();
        });
    }
    copy
}

/// The picture of a case, but for what its `flags` say.
fn bare(golden: &Golden, model: &ModelCopy) -> Journey {
    let journey = Journey::bare(golden, model.path());
    journey.with("--seed", golden.case()["seed"].to_string())
}

fn decibels(files: &Files, want: &Png) -> f64 {
    let png = files.png();
    match (png.width, png.height) == (want.width, want.height) {
        true => psnr(&png.values(), &want.values(), 255.0),
        false => 0.0,
    }
}

/// Makes the picture of a case whole, holds it to the reference's, and makes it cut.
async fn hold(name: &str) {
    let golden = Golden::load(name);
    let model = model(&golden);
    let want = Png::read(&golden_png(name));
    let journey = with(bare(&golden, &model), &flags(&golden.case()["flags"]));
    let whole = journey.go().await.unwrap();
    let db = decibels(&whole, &want);
    println!("{name}: PNG against diffusers {db:.1} dB");
    assert!(db >= 60.0, "{name}: {db:.1} dB");
    for cut in [
        journey.clone().over_local_workers(2),
        journey.clone().on_resident_strips(2).with("--wire", "f32"),
        journey
            .clone()
            .on_resident_strips(2)
            .with("--wire", "f32")
            .with("--workers-latents", "hidden"),
    ] {
        let cut = cut.go().await.unwrap();
        assert!(cut.latents() == whole.latents(), "{name}: cut");
    }
    // Masks are drawn anew each time: by fewer bits one picture in many is below.
    let blind = journey.clone().by_shares(2);
    let blind = blind.with("--share-bits", "quality").go().await.unwrap();
    let db = decibels(&blind, &want);
    assert!(db >= 40.0, "{name}: blind: {db:.1} dB");
}

#[tokio::test(flavor = "multi_thread")]
async fn pictures_from_pictures_are_those_of_the_reference_whole_and_cut() {
    for name in FROM_PICTURES {
        hold(name).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn inpainting_models_make_the_pictures_of_the_reference_whole_and_cut() {
    for name in INPAINTING {
        hold(name).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_flag_makes_another_picture() {
    for name in FROM_PICTURES.into_iter().chain(INPAINTING) {
        let golden = Golden::load(name);
        let (model, case) = (model(&golden), golden.case());
        let want = Png::read(&golden_png(name));
        let given = flags(&case["flags"]);
        let journey = with(bare(&golden, &model), &given);
        let size = format!("{}x{}", want.width, want.height);
        // Without a picture to begin with, where the model can do without.
        if !golden.has("unet.conv_in.weight") {
            let mut kept = given.clone();
            kept.retain(|(flag, _)| !["--init-image", "--mask", "--strength"].contains(flag));
            let plain = with(bare(&golden, &model), &kept).with("--size", &size);
            let db = decibels(&plain.go().await.unwrap(), &want);
            assert!(db < 40.0, "{name}: without a picture {db:.1} dB");
        }
        for pair in case["instead"].as_array().unwrap() {
            let other = flags(pair);
            let made = with(journey.clone(), &other).with("--size", &size);
            let db = decibels(&made.go().await.unwrap(), &want);
            assert!(db < 40.0, "{name}: {other:?}: {db:.1} dB");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_scheduler_begins_in_its_middle_as_the_reference() {
    let golden = Golden::load("pictures-in");
    let model = ModelCopy::of("sd2");
    model.set(
        "scheduler/scheduler_config.json",
        "skip_prk_steps",
        true.into(),
    );
    let case = golden.case();
    let keys: Vec<&str> = golden.keys("").collect();
    assert_eq!(keys.len(), 32);
    for key in keys {
        let (scheduler, kind) = key.rsplit_once('.').unwrap();
        let journey = with(bare(&golden, &model), &flags(&case[kind]));
        let files = journey.with("--scheduler", scheduler).go().await.unwrap();
        let values = |latents: &HostTensor| -> Vec<f64> {
            latents.data.iter().map(|x| f64::from(*x)).collect()
        };
        let (got, want) = (values(&files.latents()), values(golden.host(key)));
        let range = want.iter().fold(0f64, |most, x| most.max(x.abs())) * 2.0;
        let db = psnr(&got, &want, range);
        println!("{key}: latents against diffusers {db:.1} dB");
        assert!(db >= 60.0, "{key}: {db:.1} dB");
    }
}

#[test]
fn other_sizes_are_pillows_to_the_bit() {
    for name in ["photo-large.png", "mask.png"] {
        let given = read(&picture(name)).unwrap();
        for (width, height) in [(48, 40), (17, 23), (96, 64), (given.width, given.height)] {
            let resized = resize(&given, width, height);
            if (width, height) == (given.width, given.height) {
                assert_eq!(resized, given);
                continue;
            }
            let want = Png::read(&picture(&format!("resized/{width}x{height}-{name}")));
            assert_eq!((resized.width, resized.height), (want.width, want.height));
            let pairs = resized.rgb.iter().zip(&want.rgb);
            let apart: Vec<u8> = pairs
                .map(|(a, b)| a.abs_diff(*b))
                .filter(|d| *d > 0)
                .collect();
            assert!(
                apart.is_empty(),
                "{name}: {width}x{height}: {} differ, by {:?}",
                apart.len(),
                apart.iter().max()
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_begun_with_is_named_with_what_can() {
    let golden = Golden::load("masked");
    let model = model(&golden);
    let journey = || bare(&golden, &model);
    let folder = tempfile::tempdir().unwrap();
    let damaged = folder.path().join("damaged.png");
    std::fs::write(&damaged, b"\x89PNG\r\n\x1a\nand nothing else").unwrap();
    let photo = picture("photo.png");
    for (flags, said) in [
        (
            vec![("--mask", picture("mask.png"))],
            vec!["--mask", "--init-image"],
        ),
        (
            vec![("--strength", "0.5".into())],
            vec!["--strength", "--init-image"],
        ),
        (
            vec![
                ("--init-image", photo.clone()),
                ("--strength", "1.2".into()),
            ],
            vec!["--strength 1.2", "from 0 to 1"],
        ),
        (
            vec![
                ("--init-image", photo.clone()),
                ("--strength", "0.1".into()),
            ],
            vec!["--strength 0.17", "--steps"],
        ),
        (
            vec![("--init-image", damaged)],
            vec!["damaged.png", "damaged:"],
        ),
        (
            vec![("--init-image", photo.with_file_name("none.png"))],
            vec!["none.png"],
        ),
        (
            vec![
                ("--init-image", photo.clone()),
                ("--mask", model.path().join("model_index.json")),
            ],
            vec!["model_index.json", "PNG, JPEG or WebP"],
        ),
    ] {
        let error = with(journey(), &flags).go().await.err().unwrap();
        assert!(
            said.iter().all(|part| error.contains(part)),
            "{said:?}: {error}"
        );
    }
    // Nobody means a picture of so many times the model's own pixels.
    let small = ModelCopy::of("sd2");
    small.set("unet/config.json", "sample_size", json!(8));
    let large = [("--init-image", picture("photo-large.png"))];
    let error = with(bare(&golden, &small), &large)
        .go()
        .await
        .err()
        .unwrap();
    assert!(
        error.contains("50 x 41") && error.contains("--size 18x14"),
        "{error}"
    );
    // An inpainting model has to be told what to fill in.
    let golden = Golden::load("inpainting");
    let model = self::model(&golden);
    for flags in [vec![], vec![("--init-image", photo)]] {
        let error = with(bare(&golden, &model), &flags)
            .go()
            .await
            .err()
            .unwrap();
        assert!(error.contains("--init-image and --mask"), "{error}");
    }
    // Nor is a U-Net of yet other channels taken for one.
    model.set("unet/config.json", "in_channels", 8.into());
    let error = bare(&golden, &model).go().await.err().unwrap();
    assert!(
        error.contains("conv_in") || error.contains("in_channels"),
        "{error}"
    );
}
