//! Shares that are multiplied with weights in half precision: workers that hold them so and workers that round them make
//! the same of every word.

use std::path::Path;

use lacuna_model::device::{OpenDevice, Precision};
use lacuna_model::layers::Parameter;
use lacuna_model::weights::list;
use lacuna_shares::Ring;
use lacuna_shares::bands::{Needed, Planes, Rows};
use lacuna_worker::{Model, Operand};

/// The U-Net of a tiny model, of which no weight is a half.
fn model(precision: Precision) -> Model {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/goldens/models/odd/unet");
    Model::load(&dir, None, &[], (&OpenDevice::cpu().device, precision)).unwrap()
}

/// Weights of products, with the shape of an input of 6 rows or tokens, and the rows that all outputs need.
fn products(model: &Model) -> Vec<(Parameter, Vec<usize>, Needed)> {
    let all = list(model.unet()).into_iter();
    let of = all.filter_map(|parameter| {
        let rows = match parameter.shape[..] {
            [_, _, kernel, _] => Rows {
                input: 6,
                enlarged: 6,
                kernel,
                stride: 1,
                padding: kernel / 2,
            },
            [_, _] => Rows::of_tokens(6),
            _ => return None,
        };
        let strided = parameter.name.contains("downsamplers");
        // Those of the time are no products of features.
        let is_sent = !parameter.name.contains("time_emb");
        let shape = match parameter.shape[..] {
            [_, c, _, _] => vec![2, c, 6, 5],
            [_, d] => vec![2, 6, d],
            _ => return None,
        };
        let needed = rows.needed(&(0..rows.output()));
        (is_sent && !strided).then_some((parameter, shape, needed))
    });
    of.collect()
}

/// Words without a pattern that a wrong index could repeat.
fn words(shape: &[usize]) -> Vec<i32> {
    let len: usize = shape.iter().product();
    let word = |i: usize| (i as i32).wrapping_mul(0x9e37_79b1_u32.cast_signed()) >> 20;
    (0..len).map(word).collect()
}

#[test]
fn products_are_the_same_whoever_rounded_the_weights() {
    let (whole, halved) = (model(Precision::F32), model(Precision::F16));
    let products = products(&whole);
    assert!(products.len() > 50);
    for (parameter, shape, needed) in products {
        let name = parameter.layer();
        let words = words(&shape);
        let (planes, rows) = shape.split_at(shape.len() - 2);
        let operand = Operand {
            share: &words,
            planes: Planes {
                number: planes.iter().product(),
                rows: rows[0],
                width: rows[1],
            },
            needed: &needed,
            columns: None,
        };
        let product =
            |model: &Model, precision| model.multiply(name, operand, (false, precision)).unwrap();
        let [here, there] = [&whole, &halved].map(|model| product(model, Precision::F16));
        assert_eq!(here, there, "{name}");
        assert_ne!(here, product(&whole, Precision::F32), "{name}");
        for ring in [Ring::SPEED, Ring::QUALITY] {
            let product = |model: &Model| {
                let of = (ring, Precision::F16);
                model.multiply_in(of, name, operand).unwrap()
            };
            assert_eq!(product(&whole), product(&halved), "{name}");
        }
        // Whoever is told that weights are halves divides by their norms, too.
        let rows = |model: &Model, precision| model.rows_of(name, precision).unwrap();
        let mut rounded = rows(&whole, Precision::F32);
        Precision::F16.round(&mut rounded.0);
        assert_eq!(rounded, rows(&halved, Precision::F16), "{name}");
    }
}

#[test]
fn what_a_worker_does_not_hold_it_refuses_and_says_why() {
    let (whole, halved) = (model(Precision::F32), model(Precision::F16));
    for (model, precision) in [
        (&whole, Precision::F32),
        (&whole, Precision::F16),
        (&halved, Precision::F16),
    ] {
        model.check_shares(precision).unwrap();
    }
    let refusal = halved.check_shares(Precision::F32).unwrap_err().to_string();
    assert!(refusal.contains("--share-weights f16"), "{refusal}");
}
