//! Which layers workers multiply, in the order of the walk.

use std::collections::HashMap;

use lacuna_model::layers::Conv2d;
use lacuna_model::survey::{Kind, Operation, survey};
use lacuna_model::unet::{CONV_IN, CONV_OUT, Layer, UNet};

use super::options::Layers;
use super::sent::{Form, Multiplied, Sent};
use crate::error::Result;
use crate::schemes::Sizes;

/// What workers multiply under a choice of `layers`. Never the first convolution, which sees the noisy latents, the last
/// one, which makes little work of many features, what is made of the prompt, and what is made of the timestep.
///
/// # Errors
/// None today: shapes alone cannot fail.
pub fn sent(unet: &UNet, sizes: &Sizes, layers: Layers) -> Result<Vec<Sent>> {
    let convs = unet.layers().filter_map(|layer| match layer {
        Layer::Conv(conv) => Some((conv.name.as_str(), conv)),
        _ => None,
    });
    let convs: HashMap<&str, &Conv2d> = convs.collect();
    let operations = survey(unet, sizes.latents, sizes.tokens)?;
    let (mut all, mut rest) = (Vec::new(), &operations[..]);
    while !rest.is_empty() {
        // Queries, keys and values of the same tokens come before their attention.
        let alike = match rest.get(3).map(|attention| attention.kind) {
            Some(Kind::SelfAttention) => 3,
            _ => 1,
        };
        let (alike, after) = rest.split_at(alike);
        let sent = of_operations(alike, &convs);
        all.extend(sent.filter(|sent| layers.take(sent)));
        rest = after;
    }
    Ok(all)
}

/// What would be sent for `alike` operations, which have one input; none where nothing can be.
fn of_operations(alike: &[Operation], convs: &HashMap<&str, &Conv2d>) -> Option<Sent> {
    let first = alike.first()?;
    let layers = alike.iter().map(|operation| Multiplied {
        layer: operation.layer.clone(),
        outputs: match operation.kind {
            Kind::Linear => operation.output[2],
            _ => operation.output[1],
        },
        flop: operation.flop,
    });
    let layers = layers.collect();
    match first.kind {
        Kind::Conv { kernel } => {
            let conv = convs.get(first.layer.as_str())?;
            let [batch, c_in, high, wide] = first.input;
            let [rows, columns] = first.enlarged_from.unwrap_or([high, wide]);
            let inner = ![CONV_IN, CONV_OUT].contains(&first.layer.as_str());
            inner.then_some(Sent {
                layers,
                input: [batch, rows, columns],
                c_in,
                form: Form::Map {
                    kernel,
                    stride: conv.stride,
                    padding: conv.padding,
                    enlarged: first.enlarged_from.map(|_| [high, wide]),
                },
            })
        }
        Kind::Linear => {
            let [batch, tokens, c_in, _] = first.input;
            // One vector is of the timestep.
            (tokens > 1 && !first.makes_prompt_keys()).then_some(Sent {
                layers,
                input: [batch, tokens, 1],
                c_in,
                form: Form::Tokens,
            })
        }
        _ => None,
    }
}

impl Layers {
    /// Whether workers multiply what would be `sent`.
    fn take(self, sent: &Sent) -> bool {
        match self {
            Self::All => true,
            Self::Work(least) => sent.flop_per_number() >= u64::from(least),
            Self::Convs => match sent.form {
                // A stride of two makes a quarter of the work of as many features sent.
                Form::Map { kernel, stride, .. } => kernel > 1 && stride == 1,
                Form::Tokens => false,
            },
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use lacuna_model::config::ConfigReader;
    use lacuna_model::unet::UNetConfig;

    use super::*;

    /// What SD 1.5 has sent of a picture of 512x512.
    pub(crate) fn sd15(layers: Layers) -> Vec<Sent> {
        let config = serde_json::json!({"cross_attention_dim": 768});
        let config = UNetConfig::read(ConfigReader::new("sd15", config).unwrap()).unwrap();
        let sizes = Sizes {
            latents: [1, 64, 64],
            levels: 4,
            tokens: 77,
        };
        sent(&config.build(), &sizes, layers).unwrap()
    }

    fn gflop(sent: &[Sent]) -> u64 {
        sent.iter().map(Sent::flop).sum::<u64>() / 1_000_000_000
    }

    /// By the scheme's own table: 47 exchanges and 394 GFLOP; with all linear layers 84 % of 800.
    #[test]
    fn sd15_sends_what_the_design_counts() {
        let convs = sd15(Layers::Convs);
        assert_eq!((convs.len(), gflop(&convs)), (47, 394));
        let all = sd15(Layers::All);
        assert_eq!(gflop(&all), 674);
        let q = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q";
        let qkv = all.iter().find(|sent| sent.name() == q).unwrap();
        assert_eq!(qkv.layers.len(), 3);
        assert_eq!(
            (qkv.features(), qkv.products()),
            (4096 * 320, 3 * 4096 * 320)
        );
        let taken = |name: &str| all.iter().any(|sent| sent.name().contains(name));
        for never in ["attn2.to_k", "time_emb", "conv_in", "conv_out"] {
            assert!(!taken(never), "{never}");
        }
        for also in [
            "downsamplers",
            "conv_shortcut",
            "ff.net.0",
            "ff.net.2",
            "attn2.to_q",
        ] {
            assert!(taken(also), "{also}");
        }
    }

    #[test]
    fn layers_are_taken_by_their_work() {
        let mut before = sd15(Layers::All).len() + 1;
        for least in [0, 500, 1000, 2000, 4000, 8000, 100_000] {
            let some = sd15(Layers::Work(least));
            let work = |sent: &Sent| sent.flop_per_number() >= u64::from(least);
            assert!(some.iter().all(work) && some.len() < before, "{least}");
            before = some.len();
        }
        assert_eq!(before, 0);
        // The 1280-channel convolutions and not those of 320.
        let of = |channels| move |sent: &Sent| sent.c_in == channels;
        let some = sd15(Layers::Work(8000));
        assert!(some.iter().any(of(1280)) && !some.iter().any(of(320)));
    }
}
