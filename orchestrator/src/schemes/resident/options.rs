//! What can be chosen of resident strips, and what a plan may choose.

use clap::Args;
use lacuna_protocol::placement::{
    Attentions, Latents, Placement, Prompt, SelfAttention, Wire, Wires,
};

use crate::named::by_name;
use crate::schemes::Rules;

/// What can be chosen of resident strips; a plan chooses what is left out.
#[derive(Args, Clone, Copy, Debug, Default, PartialEq)]
#[command(next_help_heading = "Scheme")]
pub struct Resident {
    /// resident: who attends to the whole picture, at each level from the finest, the last for all
    /// further ones. The user: paired (with the cross-attention, in one exchange), fused (with the
    /// normalisation before, too), tokens or qkv (by what workers send). Workers: tiled (parts of
    /// the queries and keys, permuted and rotated) or broadcast (gives the picture away) [default:
    /// paired; under a policy, what is fastest].
    #[arg(long, value_parser = parse_attentions)]
    pub self_attention: Option<Attentions>,
    /// resident: whether workers may know the prompt: hidden or shared [default: hidden; under a policy, what
    /// is fastest].
    #[arg(long, value_parser = by_name::<Prompt>)]
    pub workers_prompt: Option<Prompt>,
    /// resident: whether the two halves of a guided step go side by side, so that one computes while the
    /// other waits for the link: true or false [default: true, but for workers started here].
    #[arg(long)]
    pub lanes: Option<bool>,
    /// resident: whether workers get their rows of the noisy latents: hidden (the first and the last
    /// convolution stay with you) or shared [default: shared; under a policy, what is fastest].
    #[arg(long, value_parser = by_name::<Latents>)]
    pub workers_latents: Option<Latents>,
    /// resident: how features travel: f32 (exact), f16, bf16, int8, delta8 or delta4 (the change since
    /// the last step in 8 or 4 bits); or one for each use: halo=f16,attention=delta4 [default: f32; under a
    /// policy, what is fastest].
    #[arg(long, value_parser = parse_wires)]
    pub wire: Option<Wires>,
    /// The share of what workers compute that is checked.
    #[arg(skip)]
    pub verify: Option<f64>,
    /// U-Net calls of a picture, where that is known: wires of changes take and promise less or more by it.
    #[arg(skip)]
    pub calls: Option<usize>,
}

impl Resident {
    /// What is chosen, and else the usual.
    pub fn chosen(&self) -> Placement {
        Placement {
            self_attention: self.self_attention.unwrap_or_default(),
            prompt: self.workers_prompt.unwrap_or_default(),
            latents: self.workers_latents.unwrap_or_default(),
            wires: self.wire.unwrap_or_default(),
        }
    }

    /// The same with all of `placement` chosen.
    pub fn with(self, placement: Placement) -> Self {
        Self {
            self_attention: Some(placement.self_attention),
            workers_prompt: Some(placement.prompt),
            workers_latents: Some(placement.latents),
            wire: Some(placement.wires),
            ..self
        }
    }

    /// Whether nothing of the placement is left to be chosen.
    pub fn is_settled(&self) -> bool {
        self.with(self.chosen()) == *self
    }

    /// Every placement that is as chosen, or, where nothing is chosen, that `rules` allow; each with the same
    /// self-attention at all levels.
    pub fn placements(&self, rules: &Rules<'_>) -> Vec<Placement> {
        let prompts = match (self.workers_prompt, rules.prompt) {
            (Some(prompt), _) => vec![prompt],
            (None, Prompt::Hidden) => vec![Prompt::Hidden],
            (None, Prompt::Shared) => vec![Prompt::Hidden, Prompt::Shared],
        };
        let latents = match (self.workers_latents, rules.latents) {
            (Some(latents), _) => vec![latents],
            (None, Latents::Hidden) => vec![Latents::Hidden],
            (None, Latents::Shared) => vec![Latents::Shared, Latents::Hidden],
        };
        let wires = match self.wire {
            Some(wires) => vec![wires],
            None => {
                let pairs = rules.wires.iter().flat_map(|&halo| {
                    let with = move |&attention| Wires { halo, attention };
                    rules.wires.iter().map(with)
                });
                pairs.collect()
            }
        };
        let attentions = match self.self_attention {
            Some(attentions) => vec![attentions],
            None => {
                let each = rules.self_attention.iter();
                each.copied().map(Attentions::all).collect()
            }
        };
        let checked = self.verify.is_some();
        let wires: Vec<Wires> = wires
            .into_iter()
            .filter(|wires| !checked || can_be_compared(*wires))
            .collect();
        let mut all = Vec::new();
        for &self_attention in &attentions {
            for &prompt in &prompts {
                for &latents in &latents {
                    all.extend(wires.iter().map(|&wires| Placement {
                        self_attention,
                        prompt,
                        latents,
                        wires,
                    }));
                }
            }
        }
        all
    }
}

/// Whether what travels are numbers, which can be compared but for rounding, and not codes of numbers.
pub fn can_be_compared(wires: Wires) -> bool {
    let numbers = |wire: &Wire| matches!(wire, Wire::F32 | Wire::F16 | Wire::Bf16);
    wires.each().iter().all(numbers)
}

fn parse_attentions(text: &str) -> Result<Attentions, String> {
    let each = text.split(',').map(|name| by_name(name.trim()));
    Attentions::try_from(each.collect::<Result<Vec<SelfAttention>, _>>()?)
}

fn parse_wires(text: &str) -> Result<Wires, String> {
    if !text.contains('=') {
        return Ok(Wires::all(by_name(text)?));
    }
    let part = |part: &str| match part.split_once('=') {
        Some((of, wire)) => Ok((of.trim().to_owned(), wire.trim().into())),
        None => Err(format!("{part:?}: halo=WIRE,attention=WIRE")),
    };
    let parts: Result<serde_json::Map<_, _>, String> = text.split(',').map(part).collect();
    serde_json::from_value(parts?.into()).map_err(|e| e.to_string())
}
