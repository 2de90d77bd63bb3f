//! Autoencoder against the reference library.

use burn::tensor::{Device, Tensor};
use lacuna_model::host::OnDevice;
use lacuna_orchestrator::noise::TorchRng;
use lacuna_orchestrator::vae::Vae;
use lacuna_wire::HostTensor;
use tests::golden::{Golden, MODELS, model_dir};
use tests::reference::psnr;

/// Compares a block's output where the golden file has it, and counts it.
fn check_block(golden: &Golden, block: &str, x: &Tensor<4>, checked: &mut usize) {
    let key = format!("vae.act.{block}");
    if golden.has(&key) {
        golden.check(&key, x.clone());
        *checked += 1;
    }
}

#[test]
fn pictures_and_latents_equal_the_reference() {
    let device = Device::flex();
    for name in MODELS {
        let golden = Golden::load(name);
        let vae = Vae::load(&model_dir(name).join("vae"), None, &device).unwrap();
        let mut checked = 0;

        let image = golden.tensor("vae.image", &device);
        let posterior = vae
            .encode_observed(image, &mut |block, x| {
                check_block(&golden, block, x, &mut checked);
            })
            .unwrap();
        let both = vec![posterior.mean.clone(), posterior.log_variance];
        golden.check("vae.moments", Tensor::cat(both, 1));
        golden.check("vae.latents", posterior.mean);

        let latents = golden.tensor("vae.latents", &device);
        let decoded = vae
            .decode_observed(latents, &mut |block, x| {
                check_block(&golden, block, x, &mut checked);
            })
            .unwrap();
        golden.check("vae.decoded", decoded);
        assert_eq!(checked, golden.keys("vae.act.").count(), "blocks seen");
    }
}

#[test]
fn the_config_gives_scale_and_size() {
    for (name, scaling_factor, pixels) in [("sd1", 0.18215, 2), ("odd", 0.5, 4)] {
        let folder = model_dir(name).join("vae");
        let vae = Vae::open(&folder, None).unwrap();
        assert_eq!(vae.layers().scaling_factor(), scaling_factor);
        assert_eq!(vae.layers().pixels_per_latent(), pixels);
    }
}

#[test]
fn another_number_of_channels_is_an_error() {
    let device = Device::flex();
    let vae = Vae::load(&model_dir("sd1").join("vae"), None, &device).unwrap();
    let x = || Tensor::zeros([1, 5, 4, 4], &device);
    let error = vae.decode(x()).unwrap_err().to_string();
    assert!(error.contains("latents has shape [1, 5, 4, 4]"), "{error}");
    let error = vae.encode(x()).unwrap_err().to_string();
    assert!(error.contains("picture has shape [1, 5, 4, 4]"), "{error}");
}

/// Values of a tensor.
fn values(x: Tensor<4>) -> Vec<f64> {
    let data = HostTensor::from_device(x).unwrap().data;
    data.into_iter().map(f64::from).collect()
}

#[test]
fn in_bands_of_rows_it_is_what_it_is_as_a_whole() {
    let device = Device::flex();
    for name in MODELS {
        let golden = Golden::load(name);
        let vae = Vae::load(&model_dir(name).join("vae"), None, &device).unwrap();
        let [_, channels, ..] = golden.host("vae.latents").dims::<4>().unwrap();
        let random = |seed: u64, shape: [usize; 4]| -> Tensor<4> {
            let values = TorchRng::new(seed).randn(shape.iter().product());
            HostTensor::new(shape, values)
                .unwrap()
                .into_device(&device)
                .unwrap()
        };
        // Rows that neither bands nor pairs divide.
        let stored = Vae::open(&model_dir(name).join("vae"), None).unwrap();
        let pixels = stored.layers().pixels_per_latent();
        let latents = random(1, [1, channels, 21, 12]);
        let picture = random(2, [1, 3, 21 * pixels, 12 * pixels]);
        let decoded = values(vae.decode(latents.clone()).unwrap());
        let encoded = values(vae.encode(picture.clone()).unwrap().mean);
        for (held, bits) in [(usize::MAX, true), (0, false)] {
            let bands = vae.clone().bounded(0, held, 1);
            for (got, want) in [
                (values(bands.decode(latents.clone()).unwrap()), &decoded),
                (
                    values(bands.encode(picture.clone()).unwrap().mean),
                    &encoded,
                ),
            ] {
                let range = want.iter().fold(0f64, |most, x| most.max(x.abs())) * 2.0;
                let db = psnr(&got, want, range);
                println!("{name}: in bands {db:.1} dB");
                assert!(
                    if bits { got == *want } else { db >= 100.0 },
                    "{name}: {db:.1} dB"
                );
            }
        }
    }
}
