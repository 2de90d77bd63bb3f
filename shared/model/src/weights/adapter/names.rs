//! What tools call the layers that an adapter changes.

/// A network of a model that an adapter may change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Network {
    /// The U-Net, which workers hold, too.
    UNet,
    /// The text encoder of this number.
    Text(usize),
}

/// What is put before the names of a network's layers, and whether their dots are written as underscores behind it: by
/// diffusers and PEFT, and by kohya's tools. Names without any of these are the U-Net's.
const PREFIXES: [(&str, Network, bool); 8] = [
    ("unet.", Network::UNet, false),
    ("base_model.model.", Network::UNet, false),
    ("text_encoder.", Network::Text(0), false),
    ("text_encoder_2.", Network::Text(1), false),
    ("lora_unet_", Network::UNet, true),
    ("lora_te_", Network::Text(0), true),
    ("lora_te1_", Network::Text(0), true),
    ("lora_te2_", Network::Text(1), true),
];

/// Ends of the names of the factors `A` and `B`: PEFT's, diffusers', kohya's.
const FACTORS: [[&str; 2]; 4] = [
    [".lora_A.weight", ".lora_B.weight"],
    [".lora.down.weight", ".lora.up.weight"],
    [".lora_down.weight", ".lora_up.weight"],
    [
        ".lora_linear_layer.down.weight",
        ".lora_linear_layer.up.weight",
    ],
];

/// Parts of names of adapters that are no low-rank sums, and what these are called.
const NO_SUMS: [(&str, &str); 6] = [
    ("dora_scale", "DoRA"),
    ("lora_magnitude_vector", "DoRA"),
    ("hada_", "LoHa"),
    ("lokr_", "LoKr"),
    ("lora_mid", "a Tucker decomposition"),
    ("oft_", "OFT"),
];

/// A layer as an adapter's file names it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Name {
    /// Whether dots are written as underscores.
    pub flat: bool,
    /// Behind what says the network.
    pub name: String,
}

/// The network and the layer of what a file calls `name`.
pub(super) fn layer_of(name: &str) -> (Network, Name) {
    let found = PREFIXES
        .iter()
        .find_map(|(prefix, network, flat)| Some((name.strip_prefix(prefix)?, *network, *flat)));
    let (name, network, flat) = found.unwrap_or((name, Network::UNet, false));
    // The text encoders' names here are without it.
    let text = if flat { "text_model_" } else { "text_model." };
    let name = match network {
        Network::Text(_) => name.strip_prefix(text).unwrap_or(name),
        Network::UNet => name,
    };
    let name = name.to_owned();
    (network, Name { flat, name })
}

/// Whether `name` is of a factor: what the file calls its layer, and 0 for `A`, 1 for `B`.
pub(super) fn factor_of(name: &str) -> Option<(&str, usize)> {
    let ends = FACTORS.iter().flatten().enumerate();
    ends.into_iter()
        .find_map(|(i, end)| Some((name.strip_suffix(end)?, i % 2)))
}

/// Why the tensor `name` is nothing that is read.
pub(super) fn why_not(name: &str) -> String {
    let kind = NO_SUMS.iter().find(|(part, _)| name.contains(part));
    match kind {
        Some((_, kind)) => format!("it is of {kind}, which is not supported"),
        None => {
            "it is no factor of a layer in the names of PEFT, diffusers or kohya's tools".into()
        }
    }
}

/// A tensor's name with the layer that it is of: the first adapters were kept in processors of attentions, those of text
/// encoders beside their layers.
pub(super) fn modern(name: &str) -> String {
    let old = |name: &str| -> Option<String> {
        let (before, factor) = name.split_once("_lora.")?;
        let (attention, layer) = before.rsplit_once('.')?;
        let (attention, layer) = match (attention.strip_suffix(".processor"), layer) {
            (Some(attention), "to_out") => (attention, "to_out.0"),
            (Some(attention), layer) => (attention, layer),
            (None, "to_q") => (attention, "q_proj"),
            (None, "to_k") => (attention, "k_proj"),
            (None, "to_v") => (attention, "v_proj"),
            (None, "to_out") => (attention, "out_proj"),
            (None, _) => return None,
        };
        Some(format!("{attention}.{layer}.lora.{factor}"))
    };
    old(name).unwrap_or_else(|| name.to_owned())
}

/// A name from a file, fit to be shown: files come from anywhere.
pub(super) fn shown(name: &str) -> String {
    name.escape_debug().to_string().chars().take(100).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_tools_name_says_its_network_and_layer() {
        for (name, network, flat, layer) in [
            ("unet.a.b", Network::UNet, false, "a.b"),
            ("a.b", Network::UNet, false, "a.b"),
            ("lora_unet_a_b", Network::UNet, true, "a_b"),
            ("text_encoder.text_model.a", Network::Text(0), false, "a"),
            ("text_encoder_2.a", Network::Text(1), false, "a"),
            ("lora_te_text_model_a", Network::Text(0), true, "a"),
            ("lora_te2_text_model_a", Network::Text(1), true, "a"),
        ] {
            let name_of = layer.to_owned();
            let wanted = Name {
                flat,
                name: name_of,
            };
            assert_eq!(layer_of(name), (network, wanted), "{name}");
        }
        let old = "unet.x.attn1.processor.to_out_lora.down.weight";
        assert_eq!(modern(old), "unet.x.attn1.to_out.0.lora.down.weight");
        let old = "text_encoder.x.self_attn.to_q_lora.down.weight";
        let new = "text_encoder.x.self_attn.q_proj.lora.down.weight";
        assert_eq!(modern(old), new);
        assert_eq!(factor_of("a.lora_B.weight"), Some(("a", 1)));
        assert_eq!(factor_of("a.weight"), None);
    }
}
