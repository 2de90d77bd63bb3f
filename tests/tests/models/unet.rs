//! The U-Net against diffusers, block by block.

use std::sync::mpsc::channel;

use burn::tensor::Tensor;
use lacuna_model::executor::Executor;
use lacuna_model::host::OnDevice;
use lacuna_model::unet::{Descent, Residuals, UNet};
use lacuna_model::weights::Weights;
use lacuna_model::whole::{Conditioning, Whole};
use lacuna_wire::HostTensor;
use tests::golden::{Golden, MODELS};
use tests::workers::model;

fn load(name: &str) -> (UNet, Weights) {
    let model = model(name);
    (model.unet().clone(), model.weights().clone())
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
            let conditioning = Conditioning::of_text(golden.tensor("unet.context", device));
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

fn at_first_step(name: &str) -> (UNet, Whole, Tensor<4>, f64) {
    let (unet, weights) = load(name);
    let golden = Golden::load(name);
    let device = weights.device().clone();
    let conditioning = Conditioning::of_text(golden.tensor("unet.context", &device));
    let sample = golden.tensor("unet.sample", &device);
    let timestep = golden.host("unet.t").data[0].into();
    (unet, Whole::new(weights, conditioning), sample, timestep)
}

fn values(x: Tensor<4>) -> Vec<f32> {
    HostTensor::from_device(x).unwrap().data
}

/// Whoever kept the deep part of a step begins the way up where it ended, at any depth.
#[test]
fn the_walk_can_end_and_begin_at_any_stage() {
    for name in MODELS {
        let (unet, mut whole, sample, timestep) = at_first_step(name);
        let all = values(unet.forward(&mut whole, &sample, timestep).unwrap());
        let embedding = whole.embed_time(&unet.time, timestep).unwrap();
        let (down, up) = (unet.down.len(), unet.up.len());
        for depth in 1..down {
            let mut way = unet.down(&mut whole, &sample, &embedding, down).unwrap();
            way.x = unet.middle(&mut whole, way.x, &embedding).unwrap();
            let deep = unet.up(&mut whole, way, &embedding, 0..up - depth).unwrap();
            let shallow = unet.down(&mut whole, &sample, &embedding, depth).unwrap();
            let way = Descent { x: deep, ..shallow };
            let x = unet
                .up(&mut whole, way, &embedding, up - depth..up)
                .unwrap();
            let got = values(unet.predict(&mut whole, &x).unwrap());
            assert!(got == all, "{name}: from stage {depth} of {down}");
        }
    }
}

/// Each residual has its place: none changes nothing, and one at any place alone changes the prediction.
#[test]
fn what_is_added_between_down_and_up_has_its_place() {
    let (unet, mut whole, sample, timestep) = at_first_step("sd1");
    let plain = values(unet.forward(&mut whole, &sample, timestep).unwrap());
    let embedding = whole.embed_time(&unet.time, timestep).unwrap();
    let way = unet.down(&mut whole, &sample, &embedding, unet.down.len());
    let way = way.unwrap();
    let none = Residuals {
        skips: way.skips.iter().map(Tensor::zeros_like).collect(),
        mid: way.x.zeros_like(),
    };
    let mut with = |residuals: &Residuals<Tensor<4>>| {
        let forward = unet.forward_with(&mut whole, &sample, timestep, Some(residuals));
        values(forward.unwrap())
    };
    assert!(with(&none) == plain);
    let mut seen = vec![with(&Residuals {
        mid: way.x.ones_like(),
        ..none.clone()
    })];
    for i in 0..none.skips.len() {
        let mut one = none.clone();
        one.skips[i] = way.skips[i].ones_like();
        seen.push(with(&one));
    }
    for (i, changed) in seen.iter().enumerate() {
        assert!(*changed != plain, "residual {i} changes nothing");
        let before = &seen[..i];
        assert!(before.iter().all(|other| other != changed), "residual {i}");
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
