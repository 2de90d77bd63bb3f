//! The U-Net against diffusers, block by block, and split against whole.

use std::path::PathBuf;
use std::sync::mpsc::channel;

use burn::tensor::{Device, Tensor};
use shared::host::HostTensor;
use shared::unet::{UNet, UNetConfig};
use shared::weights::{Checkpoint, Weights};
use shared::whole::{Conditioning, Whole};

fn goldens() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/goldens"))
}

/// One golden case: a model and what diffusers computed with it.
struct Case {
    unet: UNet,
    weights: Weights,
    golden: Checkpoint,
}

impl Case {
    fn open(name: &str) -> Self {
        let dir = goldens().join("models").join(name).join("unet");
        let unet = UNetConfig::from_file(&dir.join("config.json"))
            .unwrap()
            .build();
        let files = Checkpoint::open(&dir, "diffusion_pytorch_model", None).unwrap();
        let weights = Weights::load(&unet, &files, &Device::flex()).unwrap();
        let golden = Checkpoint::open(&goldens(), name, None).unwrap();
        Self {
            unet,
            weights,
            golden,
        }
    }

    fn tensor<const D: usize>(&self, name: &str) -> Tensor<D> {
        self.golden
            .read(name)
            .unwrap()
            .into_device(self.weights.device())
            .unwrap()
    }

    fn whole(&self) -> Whole {
        let context = self.tensor("unet.context");
        Whole::new(
            self.weights.clone(),
            Conditioning {
                context,
                added: None,
            },
        )
    }
}

/// Largest excess of the error over `1e-4 + 1e-3 |want|`, as a factor.
fn excess(want: &HostTensor, got: &HostTensor) -> f32 {
    assert_eq!(want.shape, got.shape);
    let pairs = want.data.iter().zip(&got.data);
    pairs
        .map(|(w, g)| (w - g).abs() / (1e-4 + 1e-3 * w.abs()))
        .fold(0.0, f32::max)
}

#[test]
fn every_block_equals_the_reference() {
    for (name, blocks) in [("sd1", 25), ("sd2", 20), ("odd", 14)] {
        let case = Case::open(name);
        for (time, acts, out) in [
            ("unet.t", "unet.act", "unet.out"),
            ("unet.t2", "unet.act2", "unet.out2"),
        ] {
            let timestep = f64::from(case.golden.read(time).unwrap().data[0]);
            let (seen, outputs) = channel();
            let mut whole = case.whole();
            whole.show_blocks_to(Box::new(move |block, x| {
                seen.send((
                    block.to_owned(),
                    HostTensor::from_device(x.clone()).unwrap(),
                ))
                .unwrap();
            }));
            let sample = case.tensor("unet.sample");
            let got = case.unet.forward(&mut whole, &sample, timestep).unwrap();
            drop(whole);
            let mut compared = 0;
            for (block, got) in outputs {
                let key = format!("{acts}.{block}");
                if !case.golden.names().any(|n| n == key) {
                    continue;
                }
                let excess = excess(&case.golden.read(&key).unwrap(), &got);
                assert!(
                    excess <= 1.0,
                    "{name}: {key} is the first block to diverge, {excess} times the tolerance"
                );
                compared += 1;
            }
            if acts == "unet.act" {
                assert!(
                    compared >= blocks,
                    "{name}: only {compared} blocks were compared"
                );
            }
            let excess = excess(
                &case.golden.read(out).unwrap(),
                &HostTensor::from_device(got).unwrap(),
            );
            println!("{name} {out}: {compared} blocks, output at {excess:.4} of the tolerance");
            assert!(
                excess <= 1.0,
                "{name}: {out} is off by {excess} times the tolerance"
            );
        }
    }
}
