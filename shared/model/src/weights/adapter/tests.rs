use std::collections::HashMap;

use super::super::Stored;
use super::*;
use crate::layers::{Conv2d, Linear};

/// A linear map and a convolution, of weights that are all one.
struct Pair(Linear, Conv2d);

impl Parameters for Pair {
    fn parameters(&self, out: &mut Vec<Parameter>) {
        self.0.parameters(out);
        self.1.parameters(out);
    }
}

fn write(path: &Path, tensors: &[(&str, &[usize], &[f32])]) {
    let tensors: Vec<(&str, HostTensor)> = tensors
        .iter()
        .map(|(name, shape, data)| (*name, HostTensor::new(*shape, data.to_vec()).unwrap()))
        .collect();
    let tensors = tensors.iter().map(|(name, tensor)| (*name, tensor));
    std::fs::write(path, lacuna_wire::to_safetensors(tensors, None).unwrap()).unwrap();
}

fn stored(dir: &tempfile::TempDir) -> Stored<Pair> {
    let path = dir.path().join("base.safetensors");
    let pair = Pair(Linear::new("a", 2, 3), Conv2d::same("b", 1, 2, 3));
    write(
        &path,
        &[
            ("a.weight", &[3, 2], &[1.0; 6]),
            ("a.bias", &[3], &[0.0; 3]),
            ("b.weight", &[2, 1, 3, 3], &[1.0; 18]),
            ("b.bias", &[2], &[0.0; 2]),
        ],
    );
    Stored::new(pair, Checkpoint::open_file(&path).unwrap()).unwrap()
}

fn nine(value: f32) -> [f32; 9] {
    [value; 9]
}

#[test]
fn a_change_is_a_product_of_its_factors() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("adapter.safetensors");
    write(
        &path,
        &[
            ("unet.a.lora.down.weight", &[1, 2], &[1.0, 10.0]),
            ("unet.a.lora.up.weight", &[3, 1], &[1.0, 2.0, 3.0]),
            ("unet.b.lora_A.weight", &[1, 1, 3, 3], &nine(2.0)),
            ("unet.b.lora_B.weight", &[2, 1, 1, 1], &[1.0, -1.0]),
            ("unet.b.alpha", &[], &[0.5]),
        ],
    );
    let base = stored(&dir);
    let plain = base.digest().unwrap().to_owned();
    let read = |strength: f32| {
        let mut adapter = Adapter::open(&path, strength).unwrap();
        let adapter = adapter.take(Network::UNet).unwrap();
        let merged = stored(&dir).with_adapters(vec![adapter]).unwrap();
        let values: HashMap<&str, Vec<f32>> = ["a.weight", "b.weight", "b.bias"]
            .map(|name| (name, merged.read(name).unwrap().data))
            .into();
        (values, merged.digest().unwrap().to_owned())
    };
    let (whole, digest) = read(1.0);
    assert_eq!(whole["a.weight"], [2.0, 11.0, 3.0, 21.0, 4.0, 31.0]);
    // alpha / r is a half.
    assert_eq!(whole["b.weight"], [nine(2.0), nine(0.0)].concat());
    assert_eq!(whole["b.bias"], [0.0; 2]);
    let (half, other) = read(0.5);
    assert_eq!(half["a.weight"], [1.5, 6.0, 2.0, 11.0, 2.5, 16.0]);
    let merged = |strength| {
        let part = Adapter::open(&path, strength).unwrap().take(Network::UNet);
        stored(&dir)
            .with_adapters(part.into_iter().collect())
            .unwrap()
    };
    let endless = merged(1e38).read("a.weight").unwrap_err().to_string();
    assert!(
        endless.contains("adapter.safetensors: with it, a.weight"),
        "{endless}"
    );
    let (none, _) = read(0.0);
    assert_eq!(none["a.weight"], [1.0; 6]);
    // What is computed with tells itself from the base, and by its strength.
    assert!(digest != plain && other != plain && digest != other);
    assert_eq!(read(1.0).1, digest);
    assert_eq!(
        stored(&dir)
            .with_adapters(Vec::new())
            .unwrap()
            .digest()
            .unwrap(),
        plain
    );
}

#[test]
fn what_does_not_fit_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("adapter.safetensors");
    let file = |factors: &[(&str, [usize; 2])]| {
        let data = [1.0, 2.0];
        let tensors: Vec<(&str, &[usize], &[f32])> = factors
            .iter()
            .map(|(name, shape)| (*name, shape.as_slice(), data.as_slice()))
            .collect();
        write(&path, &tensors);
    };
    let (a, b) = ("unet.a.lora_A.weight", "unet.a.lora_B.weight");
    for (factors, part) in [
        (&[("lora_te_x.lora_down.weight.x", [1, 2])][..], "lora_te_x"),
        (&[("unet.a.dora_scale", [1, 2])], "DoRA"),
        (&[("lora_unet_a.hada_w1_a", [1, 2])], "LoHa"),
        (&[(a, [1, 2])], "one factor of two"),
        (&[("unet.a.alpha", [1, 2])], "not one number"),
        (
            &[(a, [1, 2]), (b, [2, 1]), ("a.lora.down.weight", [1, 2])],
            "there twice",
        ),
        (&[("unet.lora_\u{1b}[2J", [1, 2])], "unet.lora_\\u{1b}[2J"),
        (&[], "no adapter"),
        (&[(a, [1, 2]), (b, [1, 2])], "do not fit"),
        (
            &[
                ("unet.c.lora_A.weight", [1, 2]),
                ("unet.c.lora_B.weight", [2, 1]),
            ],
            "has no layer c",
        ),
        (
            &[(a, [1, 2]), (b, [2, 1])],
            "do not fit the weight's [3, 2]",
        ),
    ] {
        file(factors);
        let opened = Adapter::open(&path, 1.0);
        let error = opened.and_then(|mut adapter| {
            let part = adapter.take(Network::UNet).unwrap();
            stored(&dir).with_adapters(vec![part])
        });
        let error = error.err().expect(part).to_string();
        assert!(error.contains(part), "{part:?} is not in {error}");
    }
}

#[test]
fn kohyas_names_and_those_of_text_encoders_are_read() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("adapter.safetensors");
    write(
        &path,
        &[
            ("lora_unet_a.lora_down.weight", &[1, 2], &[1.0, 10.0]),
            ("lora_unet_a.lora_up.weight", &[3, 1], &[1.0, 2.0, 3.0]),
            ("lora_unet_a.alpha", &[], &[0.5]),
            (
                "lora_te2_text_model_a.lora_down.weight",
                &[1, 2],
                &[0.0, 1.0],
            ),
            (
                "lora_te2_text_model_a.lora_up.weight",
                &[3, 1],
                &[1.0, 1.0, 1.0],
            ),
        ],
    );
    let files = [AdapterFile {
        path: path.clone(),
        strength: 1.0,
    }];
    let weight = |network| {
        let mut adapters = AdapterFile::open_all(&files).unwrap();
        let adapters = Adapter::take_all(&mut adapters, network);
        let stored = stored(&dir).with_adapters(adapters).unwrap();
        stored.read("a.weight").unwrap().data
    };
    assert_eq!(weight(Network::UNet), [1.5, 6.0, 2.0, 11.0, 2.5, 16.0]);
    assert_eq!(weight(Network::Text(0)), [1.0; 6]);
    assert_eq!(weight(Network::Text(1)), [1.0, 2.0, 1.0, 2.0, 1.0, 2.0]);
    let mut adapter = Adapter::open(&path, 1.0).unwrap();
    for network in [Network::UNet, Network::Text(1)] {
        let error = adapter.check_taken().unwrap_err().to_string();
        assert!(error.contains("second text encoder"), "{error}");
        assert!(adapter.take(network).is_some() && adapter.take(network).is_none());
    }
    adapter.check_taken().unwrap();
}

#[test]
fn a_strength_stands_behind_the_last_colon() {
    let read = |text: &str| {
        let file: AdapterFile = text.parse().unwrap();
        (file.path.display().to_string(), file.strength)
    };
    assert_eq!(read("a.safetensors"), ("a.safetensors".into(), 1.0));
    assert_eq!(
        read("a:b.safetensors:-0.5"),
        ("a:b.safetensors".into(), -0.5)
    );
    assert_eq!(read("C:style"), ("C:style".into(), 1.0));
    for wrong in [
        "",
        ":1",
        "a:nan",
        "a:inf",
        "a.safetensors:",
        "a.safetensors:0,8",
    ] {
        assert!(wrong.parse::<AdapterFile>().is_err(), "{wrong}");
    }
}

#[test]
fn settings_that_are_no_low_rank_sum_are_refused() {
    let both = r#"{"unet.lora_alpha": 8, "unet.r": 4, "text_encoder.lora_alpha": 2}"#;
    assert_eq!(alpha_of(both, Network::UNet), Ok(Some(8.0)));
    assert_eq!(alpha_of(both, Network::Text(0)), Ok(Some(2.0)));
    assert_eq!(alpha_of(both, Network::Text(1)), Ok(None));
    assert_eq!(alpha_of("{}", Network::UNet), Ok(None));
    for settings in [
        r#"{"unet.use_dora": true}"#,
        r#"{"unet.rank_pattern": {"x": 3}}"#,
        "[]",
    ] {
        assert!(alpha_of(settings, Network::UNet).is_err(), "{settings}");
    }
}
