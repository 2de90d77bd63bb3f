//! One tiny model with something in its files changed, each time against the reference's picture of the
//! same files (`scripts/goldens/variations.py`).

use lacuna_wire::{HostTensor, to_safetensors};
use serde_json::Value;
use tests::golden::Golden;
use tests::journey::{Files, Journey};
use tests::model_copy::ModelCopy;
use tests::reference::psnr;

fn text(value: &Value) -> &str {
    value.as_str().unwrap()
}

/// Makes an edit as the script does.
fn apply(copy: &ModelCopy, edit: &Value) {
    let (kind, arguments) = edit.as_object().unwrap().iter().next().unwrap();
    let arguments = arguments.as_array().unwrap();
    let file = text(&arguments[0]);
    let number = |value: &Value| value.as_u64().unwrap() as usize;
    match (kind.as_str(), &arguments[1..]) {
        ("set", [key, Value::Null]) => copy.set_null(file, text(key)),
        ("set", [key, value]) => copy.set(file, text(key), value.clone()),
        ("unset", [key]) => copy.set(file, text(key), Value::Null),
        ("write", [content]) => copy.write(file, text(content)),
        ("scale", [to, factor]) => {
            copy.scale_tensors(file, text(to), factor.as_f64().unwrap() as f32)
        }
        ("shard", [stem, count]) => {
            let part = file.split('/').next().unwrap();
            copy.add_shards(part, text(stem), number(count))
        }
        ("waves", [Value::Object(shapes)]) => {
            let tensors = shapes.iter().map(|(name, shape)| {
                let shape: Vec<usize> = shape.as_array().unwrap().iter().map(number).collect();
                (name.as_str(), wave(name, &shape))
            });
            let tensors: Vec<_> = tensors.collect();
            let named = tensors.iter().map(|(name, tensor)| (*name, tensor));
            copy.write(file, to_safetensors(named, None).unwrap())
        }
        ("rows", [name, rows]) => {
            let rows: Vec<usize> = rows.as_array().unwrap().iter().map(number).collect();
            copy.keep_rows(file, text(name), &rows)
        }
        _ => panic!("an unknown edit {edit}"),
    };
}

/// As the script makes them.
fn wave(name: &str, shape: &[usize]) -> HostTensor {
    let numbers: usize = shape.iter().product();
    let inputs = numbers / shape[0];
    let bare = shape.len() == 1;
    let middle = f64::from(u8::from(bare && name.ends_with("weight")));
    let size = if bare {
        0.1
    } else {
        (inputs as f64).powf(-0.5)
    };
    let value = |i: usize| middle + size * (i as f64 * 0.731 + (numbers % 17) as f64).sin();
    let data = (0..numbers).map(|i| value(i) as f32);
    HostTensor::new(shape, data.collect()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_without_a_middle_block_is_split_as_others_are() {
    let golden = Golden::load("variations");
    let copy = ModelCopy::of("sd2");
    copy.set_null("unet/config.json", "mid_block_type");
    let journey = Journey::of(&golden, copy.path()).with("--width", "16");
    let journey = journey.with("--height", "24");
    let local = journey.go().await.unwrap();
    for split in [
        journey.clone().over_local_workers(2),
        journey.clone().on_resident_strips(3),
    ] {
        let split = split.go().await.unwrap();
        let values = |files: &Files| {
            let values = files.latents().data.into_iter().map(f64::from);
            values.collect::<Vec<_>>()
        };
        let db = psnr(&values(&split), &values(&local), 8.0);
        assert!(db >= 80.0, "{db:.1} dB");
    }
}

/// The picture's values in 0..255, `[C, h, w]`.
fn pixels(path: &std::path::Path) -> (usize, Vec<f64>) {
    let file = std::io::BufReader::new(std::fs::File::open(path).unwrap());
    let mut reader = png::Decoder::new(file).read_info().unwrap();
    let mut bytes = vec![0; reader.output_buffer_size().unwrap()];
    let frame = reader.next_frame(&mut bytes).unwrap();
    let channels = frame.color_type.samples();
    let plane = |c: usize| bytes.iter().skip(c).step_by(channels);
    let planes = (0..channels).flat_map(plane).map(|b| f64::from(*b));
    (channels, planes.collect())
}

/// The reference's picture in the channels that a file has: grey three times, opacity at the end.
fn in_channels(want: &HostTensor, channels: usize) -> Vec<f64> {
    let plane = want.data.len() / want.shape[0];
    let bytes: Vec<f64> = want
        .data
        .iter()
        .map(|x| f64::from((x * 255.0).round_ties_even()))
        .collect();
    match want.shape[0] {
        grey @ (1 | 2) => [
            bytes[..plane].repeat(3),
            bytes[plane..grey * plane].to_vec(),
        ]
        .concat(),
        colours => {
            assert_eq!(colours, channels);
            bytes
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_variation_is_the_references_picture() {
    let golden = Golden::load("variations");
    let case = golden.case();
    let variations = case["variations"].as_array().unwrap();
    assert!(variations.len() > 40);
    let mut wrong = Vec::new();
    for variation in variations {
        let name = text(&variation["name"]);
        let copy = ModelCopy::of(text(&case["name"]));
        for edit in variation["edits"].as_array().unwrap() {
            apply(&copy, edit);
        }
        let mut journey = Journey::of(&golden, copy.path());
        for key in ["seed", "width", "height"] {
            journey = journey.with(&format!("--{key}"), case[key].to_string());
        }
        for key in ["scheduler", "variant"] {
            if let Some(value) = variation[key].as_str() {
                journey = journey.with(&format!("--{key}"), value);
            }
        }
        for (key, value) in variation["options"].as_object().into_iter().flatten() {
            let value = value
                .as_str()
                .map_or_else(|| value.to_string(), str::to_owned);
            journey = journey.with("--scheduler-option", format!("{key}={value}"));
        }
        for key in ["steps", "guidance", "eta"] {
            if let Some(value) = variation[key].as_f64() {
                journey = journey.with(&format!("--{key}"), value.to_string());
            }
        }
        if let Some(prompt) = variation["prompt"].as_str() {
            journey = journey.asking(prompt);
        }
        let files = match journey.go().await {
            Ok(files) => files,
            Err(error) => {
                wrong.push(format!("{name}: {error}"));
                continue;
            }
        };
        let want = golden.host(&format!("{name}.latents"));
        let largest = want.data.iter().fold(0f32, |max, x| max.max(x.abs()));
        let latents = files.latents();
        let as_f64 = |x: &[f32]| x.iter().map(|x| f64::from(*x)).collect::<Vec<_>>();
        let db = psnr(
            &as_f64(&latents.data),
            &as_f64(&want.data),
            f64::from(2.0 * largest),
        );
        println!("{name}: latents {db:.1} dB");
        if db < 80.0 {
            wrong.push(format!("{name}: latents {db:.1} dB"));
        }
        let key = format!("{name}.picture");
        if golden.has(&key) {
            let (channels, got) = pixels(&files.path("pic.png"));
            let db = psnr(&got, &in_channels(golden.host(&key), channels), 255.0);
            println!("{name}: picture {db:.1} dB, {channels} channels");
            if db < 60.0 {
                wrong.push(format!("{name}: picture {db:.1} dB"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}
