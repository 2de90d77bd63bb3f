//! Models, fleets and latents that are missing or damaged: one line that names the file, and no picture.

mod common;
#[path = "common/workplace.rs"]
mod workplace;

use std::collections::BTreeMap;

use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde_json::{Map, Value, json};
use workplace::Workplace;

const UNET: &str = "unet/diffusion_pytorch_model.safetensors";

/// Tensors by name: number type, sizes, bytes.
type Tensors = BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>;

/// Changes the tensors of a weight file.
fn change_tensors(place: &Workplace, file: &str, change: impl FnOnce(&mut Tensors)) {
    let path = place.model().join(file);
    let bytes = std::fs::read(&path).unwrap();
    let parsed = SafeTensors::deserialize(&bytes).unwrap();
    let mut tensors: Tensors = parsed
        .iter()
        .map(|(name, t)| {
            let raw = (t.dtype(), t.shape().to_vec(), t.data().to_vec());
            (name.to_owned(), raw)
        })
        .collect();
    change(&mut tensors);
    let views = tensors.iter().map(|(name, (dtype, shape, data))| {
        let view = TensorView::new(*dtype, shape.clone(), data).unwrap();
        (name.as_str(), view)
    });
    std::fs::write(&path, safetensors::serialize(views, None).unwrap()).unwrap();
}

/// Changes a JSON file.
fn change_json(place: &Workplace, file: &str, change: impl FnOnce(&mut Map<String, Value>)) {
    let path = place.model().join(file);
    let mut map = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    change(&mut map);
    std::fs::write(&path, Value::Object(map).to_string()).unwrap();
}

/// Runs it, and sees to it that the picture is made, with one line of warning that names `parts`.
#[track_caller]
fn passes_with(place: &Workplace, parts: &[&str]) {
    let output = place.generate::<&str>(&[]);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{stderr}");
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
    assert!(stderr.contains("WARN"), "{stderr}");
    for part in parts {
        assert!(stderr.contains(part), "{part:?} is not in: {stderr}");
    }
    assert!(place.out().join("pic.png").is_file());
}

#[test]
fn a_missing_model_is_named() {
    let place = Workplace::new();
    place.fails(&["--model", "/nowhere/at/all"], &["/nowhere/at/all"]);
    let empty = place.folder.path().join("empty");
    std::fs::create_dir(&empty).unwrap();
    let empty = empty.to_str().unwrap();
    place.fails(&["--model", empty], &[empty, "model_index.json"]);
    for part in ["unet", "vae", "text_encoder", "tokenizer", "scheduler"] {
        let place = Workplace::new();
        std::fs::remove_dir_all(place.model().join(part)).unwrap();
        place.fails::<&str>(&[], &[&format!("part {part} is missing")]);
    }
}

#[test]
fn truncated_weights_are_named() {
    for file in [
        UNET,
        "vae/diffusion_pytorch_model.safetensors",
        "text_encoder/model.safetensors",
    ] {
        for share in [0, 1, 50, 99] {
            let place = Workplace::new();
            let path = place.model().join(file);
            let bytes = std::fs::read(&path).unwrap();
            std::fs::write(&path, &bytes[..bytes.len() * share / 100]).unwrap();
            place.fails::<&str>(&[], &[file]);
        }
    }
}

#[test]
fn a_tensor_of_another_type_name_or_value_is_named() {
    let name = "mid_block.resnets.0.conv1.weight";
    let place = Workplace::new();
    change_tensors(&place, UNET, |tensors| {
        let tensor = tensors.get_mut(name).unwrap();
        tensor.0 = Dtype::I32;
    });
    place.fails::<&str>(&[], &[name, "I32"]);

    let place = Workplace::new();
    change_tensors(&place, UNET, |tensors| {
        let tensor = tensors.remove(name).unwrap();
        tensors.insert("mid_block.resnets.0.conv7.weight".into(), tensor);
    });
    place.fails::<&str>(&[], &[name, "missing"]);

    let place = Workplace::new();
    change_tensors(&place, UNET, |tensors| {
        let tensor = tensors[name].clone();
        tensors.insert("mid_block.resnets.0.conv7.weight".into(), tensor);
    });
    passes_with(
        &place,
        &["unused tensors", "mid_block.resnets.0.conv7.weight"],
    );

    let place = Workplace::new();
    change_tensors(&place, UNET, |tensors| {
        let tensor = tensors.get_mut(name).unwrap();
        tensor.2[..4].copy_from_slice(&f32::NAN.to_le_bytes());
    });
    place.fails::<&str>(&[], &[name, "not finite"]);
}

#[test]
fn a_config_that_cannot_be_honoured_is_named() {
    for (file, key, value) in [
        ("unet/config.json", "act_fn", json!("mish")),
        ("vae/config.json", "out_channels", json!(5)),
        ("text_encoder/config.json", "hidden_act", json!("relu6")),
        (
            "scheduler/scheduler_config.json",
            "prediction_type",
            json!("sample7"),
        ),
        ("model_index.json", "_class_name", json!("FluxPipeline")),
    ] {
        let place = Workplace::new();
        change_json(&place, file, |map| {
            map.insert(key.into(), value.clone());
        });
        let told = if key == "_class_name" {
            "FluxPipeline"
        } else {
            key
        };
        place.fails::<&str>(&[], &[file, told]);
    }
    let place = Workplace::new();
    std::fs::write(place.model().join("unet/config.json"), "{\"act_fn\":\n").unwrap();
    place.fails::<&str>(&[], &["unet/config.json"]);
}

#[test]
fn a_key_that_nobody_has_is_a_warning() {
    for (file, key, value) in [
        ("unet/config.json", "decay", json!(0.9999)),
        ("vae/config.json", "extra_mixing", json!([1])),
        ("text_encoder/config.json", "extra_mixing", json!({})),
        ("tokenizer/tokenizer_config.json", "extra_mixing", json!(2)),
        ("scheduler/scheduler_config.json", "extra_mixing", json!(2)),
        (
            "model_index.json",
            "controlnet",
            json!(["diffusers", "ControlNetModel"]),
        ),
    ] {
        let place = Workplace::new();
        change_json(&place, file, |map| {
            map.insert(key.into(), value.clone());
        });
        passes_with(&place, &["ignored", key]);
    }
}

#[test]
fn a_bad_fleet_file_is_named() {
    let place = Workplace::new();
    let path = place.folder.path().join("fleet.toml");
    let file = path.to_str().unwrap();
    place.fails(&["--fleet", file], &["fleet file", file]);
    for (text, part) in [
        ("", "0 [[worker]]"),
        ("[[worker\n", "fleet.toml"),
        ("[[worker]]\nurl = \"http://a/\"\n", "provider"),
        (
            "[[worker]]\nurl = \"no url\"\nprovider = \"p\"\n",
            "worker 1",
        ),
        ("[[worker]]\nurl = 7\nprovider = \"p\"\n", "url"),
        (
            "[[worker]]\nurl = \"ftp://a/\"\nprovider = \"p\"\n",
            "ftp://a/",
        ),
        (
            "[[wroker]]\nurl = \"http://a/\"\nprovider = \"p\"\n",
            "wroker",
        ),
    ] {
        std::fs::write(&path, text).unwrap();
        place.fails(&["--fleet", file], &[file, part]);
    }
    std::fs::write(&path, [0xff, 0xfe, 0x00]).unwrap();
    place.fails(&["--fleet", file], &[file]);
    // The older name.
    place.fails(&["--workers", file], &["fleet file", file]);
}

#[test]
fn bad_latents_are_named() {
    let place = Workplace::new();
    let path = place.folder.path().join("noise.safetensors");
    let file = path.to_str().unwrap();
    place.fails(&["--latents", file], &[file]);
    std::fs::write(&path, b"no latents").unwrap();
    place.fails(&["--latents", file], &[file, "damaged"]);
    let data = vec![0; 4 * 4];
    let view = TensorView::new(Dtype::F32, vec![4], &data).unwrap();
    std::fs::write(&path, safetensors::serialize([("x", view)], None).unwrap()).unwrap();
    place.fails(&["--latents", file], &[file, "[4]"]);
}
