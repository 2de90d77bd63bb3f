//! The U-Net against diffusers, block by block.

use std::sync::mpsc::channel;

use shared::device::OpenDevice;
use shared::unet::{UNet, UNetConfig};
use shared::weights::{Checkpoint, Library, Weights};
use shared::whole::{Conditioning, Whole};
use tests::golden::{Golden, MODELS, model_dir};

fn load(name: &str) -> (UNet, Weights) {
    let dir = model_dir(name).join("unet");
    let unet = UNetConfig::from_file(&dir.join("config.json"))
        .unwrap()
        .build();
    let files = Checkpoint::open(&dir, Library::Diffusers, None).unwrap();
    let weights = Weights::load(&unet, &files, &OpenDevice::cpu().device).unwrap();
    (unet, weights)
}

/// The first block that diverges is the bug, so the blocks are compared in the walk's order.
#[test]
fn every_block_equals_the_reference() {
    for name in MODELS {
        let (unet, weights) = load(name);
        let golden = Golden::load(name);
        let device = weights.device();
        for (time, act, out) in [
            ("unet.t", "unet.act", "unet.out"),
            ("unet.t2", "unet.act2", "unet.out2"),
        ] {
            let (sender, blocks) = channel();
            let conditioning = Conditioning {
                context: golden.tensor("unet.context", device),
                added: None,
            };
            let mut whole = Whole::new(weights.clone(), conditioning);
            whole.show_blocks_to(Box::new(move |block, x| {
                sender.send((block.to_owned(), x.clone())).unwrap();
            }));
            let timestep = golden.host(time).data[0].into();
            let sample = golden.tensor("unet.sample", device);
            let output = unet.forward(&mut whole, &sample, timestep).unwrap();
            drop(whole);

            let mut compared = 0;
            for (block, x) in blocks {
                let key = format!("{act}.{block}");
                if golden.has(&key) {
                    golden.check(&key, x);
                    compared += 1;
                }
            }
            let stored = golden
                .keys(&format!("{act}."))
                .filter(|k| !is_inner(k))
                .count();
            assert_eq!(
                compared, stored,
                "{name}: blocks with a golden that were not compared"
            );
            golden.check(out, output);
        }
    }
}

/// Modules of the reference that are no block of ours: the embedding, and what is fused.
fn is_inner(key: &str) -> bool {
    [
        "time_proj",
        "time_embedding",
        "conv_norm_out",
        "conv_act",
        "mid_block",
        "conv_out",
    ]
    .iter()
    .any(|inner| key.ends_with(&format!(".{inner}")))
}
