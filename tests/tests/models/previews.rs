//! Pictures of unfinished pictures.

use lacuna_model::device::OpenDevice;
use lacuna_orchestrator::pipeline::Pipeline;
use lacuna_orchestrator::preview::Preview;
use tests::golden::{Golden, golden_png, model_dir};
use tests::journey::{Journey, Png};
use tests::model_copy::{ModelCopy, rename_tensors};
use tests::reference::psnr;

fn taesd() -> std::path::PathBuf {
    golden_png("taesd").with_extension("")
}

fn pipeline(name: &str) -> Pipeline {
    Pipeline::open(&model_dir(name), None, &[], &OpenDevice::cpu().device).unwrap()
}

#[test]
fn a_tiny_decoder_is_that_of_the_reference_in_both_layouts() {
    let golden = Golden::load("taesd");
    let pipeline = pipeline("sd2");
    // The original counts a layer more, and has the decoder alone.
    let folder = tempfile::tempdir().unwrap();
    let original = folder.path().join("taesd_decoder.safetensors");
    let stored = taesd().join("diffusion_pytorch_model.safetensors");
    ModelCopy::change_file(&stored, &original, |tensors| {
        tensors.retain(|name, _| name.starts_with("decoder."));
        rename_tensors(tensors, |name| {
            let rest = name.strip_prefix("decoder.layers.").unwrap();
            let (number, rest) = rest.split_once('.').unwrap();
            format!("{}.{rest}", number.parse::<usize>().unwrap() + 1)
        });
    });
    for path in [taesd(), original] {
        let preview = Preview::of(&pipeline, Some(&path)).unwrap();
        let picture = preview.decode(golden.host("latents").clone()).unwrap();
        let want = golden.host("decoded");
        assert_eq!(
            [1, 3, picture.height, picture.width],
            want.dims::<4>().unwrap()
        );
        let want: Vec<f64> = want
            .data
            .iter()
            .map(|x| f64::from(x / 2.0 + 0.5).clamp(0.0, 1.0))
            .collect();
        let got: Vec<f64> = picture.rgb.iter().map(|x| f64::from(*x)).collect();
        let db = psnr(&got, &want, 1.0);
        assert!(db >= 100.0, "{}: {db:.1} dB", path.display());
    }
}

#[test]
fn what_is_no_tiny_decoder_is_named() {
    let pipeline = pipeline("sd2");
    let vae = model_dir("sd2").join("vae");
    let error = Preview::of(&pipeline, Some(&vae))
        .err()
        .unwrap()
        .to_string();
    assert!(
        error.contains("sd2/vae") && error.contains("--preview-decoder"),
        "{error}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_preview_is_written_on_the_way_and_shows_the_picture() {
    let Some(journey) = Journey::demo() else {
        return;
    };
    let journey = journey.with("--steps", "8").with("--guidance", "3");
    for decoder in ["linear", "taesd"] {
        let path = journey.file(&format!("{decoder}.png"));
        let mut journey = journey
            .clone()
            .with("--preview", &path)
            .with("--preview-every", "3");
        if decoder == "taesd" {
            journey = journey.with("--preview-decoder", taesd());
        }
        let files = journey.go().await.unwrap();
        let (preview, picture) = (Png::read(&path), files.png());
        assert_eq!(
            (preview.width, preview.height),
            (picture.width, picture.height)
        );
        assert_eq!(preview.text, []);
        let db = psnr(&preview.values(), &picture.values(), 255.0);
        println!("{decoder}: preview of the last step against the picture {db:.1} dB");
        // The tiny decoder has weights at random.
        assert!(decoder == "taesd" || db >= 12.0, "{db:.1} dB");
    }
    // The picture itself is as without.
    let plain = journey.go().await.unwrap();
    let shown = journey.clone().with("--preview", journey.file("p.png"));
    assert!(shown.go().await.unwrap().latents() == plain.latents());
    for (flag, value, said) in [
        ("--preview-every", "2", "give --preview"),
        ("--preview", "preview.jpg", ".png"),
    ] {
        let error = journey.clone().with(flag, value).go().await.err().unwrap();
        assert!(error.contains(said), "{error}");
    }
}
