//! Any bytes at all as what arrives for a tensor, several steps of it, and what one end wrote read by the other.

#![no_main]

use lacuna_wire::{Codec, HostTensor, Payload, Wire};
use libfuzzer_sys::fuzz_target;

const WIRES: [Wire; 6] = Wire::ALL;
const STEPS: usize = 3;

fuzz_target!(|bytes: &[u8]| {
    let [wire, b, c, h, w, bytes @ ..] = bytes else {
        return;
    };
    let wire = WIRES[usize::from(*wire) % WIRES.len()];
    let shape = [b, c, h, w].map(|side| usize::from(side % 4) + 1);
    let part = bytes.len() / STEPS;

    // Nothing that arrives brings more than an error, or numbers.
    let mut end = Codec::default();
    for step in 0..STEPS {
        let data = bytes[step * part..][..part].to_vec();
        let payload = Payload::Codes {
            shape: [data.len()],
            data,
        };
        if let Ok(tensor) = end.read("x", payload, &shape, wire) {
            assert_eq!(tensor.shape, shape);
            assert!(tensor.data.iter().all(|x| x.is_finite()));
        }
    }

    // What can be written can be read by the other end.
    let (mut ours, mut theirs) = (Codec::default(), Codec::default());
    for step in 0..STEPS {
        let numbers = bytes[step * part..][..part].chunks_exact(4);
        let numbers = numbers.map(|n| f32::from_le_bytes([n[0], n[1], n[2], n[3]]));
        let mut data: Vec<f32> = numbers.filter(|x| x.is_finite()).collect();
        data.resize(shape.iter().product(), 0.0);
        let tensor = HostTensor::new(shape, data).expect("as many values as the shape has");
        let Ok(payload) = ours.write("x", tensor, wire) else {
            return;
        };
        let read = theirs.read("x", payload, &shape, wire);
        assert!(read.is_ok(), "{wire:?}, step {step}: {read:?}");
    }
});
