//! Any bytes at all as a message: they are refused, or are a message that reads the same when it is written again.

#![no_main]

use lacuna_wire::Message;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(message) = Message::<serde_json::Value>::decode(bytes) else {
        return;
    };
    assert!(message.payload_bytes() <= bytes.len());
    let again = message.encode().expect("what was read can be written");
    let again = Message::<serde_json::Value>::decode(&again).expect("what was written can be read");
    assert!(again == message);
    for (name, payload) in message.tensors {
        let values: usize = payload.shape().iter().product();
        if let Ok(tensor) = payload.into_tensor(&name) {
            assert_eq!(tensor.data.len(), values);
        }
    }
});
