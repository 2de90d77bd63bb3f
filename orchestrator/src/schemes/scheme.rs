//! What a scheme is: everything that the rest of the program asks of one.

use std::any::Any;
use std::collections::HashSet;
use std::fmt::Debug;
use std::sync::Arc;

use clap::Args;
use futures::future::BoxFuture;
use lacuna_model::layers::Parameter;
use lacuna_model::unet::UNet;
use lacuna_model::weights::{Apart, list};
use lacuna_model::whole::Whole;
use lacuna_protocol::placement::{Latents, Prompt, SelfAttention, Wire};
use lacuna_protocol::session::SessionKind;

use super::count::Count;
use super::predictor::{Predictor, at_home};
use crate::error::Result;
use crate::fleet::Fleet;
use crate::fleet::config::{FleetConfig, MAX_WORKERS};
use crate::fleet::tally::Seen;

/// Sizes of a picture's U-Net calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// Batch, rows and columns of the latents.
    pub latents: [usize; 3],
    /// Levels of the U-Net.
    pub levels: usize,
    /// Tokens of the prompt.
    pub tokens: usize,
}

/// The parameters that the user needs for a picture.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct UserParameters {
    /// From the first U-Net call to the last.
    pub held: Vec<Parameter>,
    /// Before the first: they make the prompt's keys and values, which stay.
    pub of_prompt: Vec<Parameter>,
}

/// What a policy leaves to be chosen.
#[derive(Clone, Copy, Debug)]
pub struct Rules<'a> {
    /// Whether providers may know the prompt.
    pub prompt: Prompt,
    /// Whether providers may get their rows of the noisy latents.
    pub latents: Latents,
    /// How self-attention may be done.
    pub self_attention: &'a [SelfAttention],
    /// Number types that features may travel in.
    pub wires: &'a [Wire],
}

/// What a scheme uses of what a policy lists.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Uses {
    /// How self-attention is done, by level; none where workers take no part in it.
    pub self_attention: Vec<SelfAttention>,
    /// Number types that features travel in; none where none travel.
    pub wires: Vec<Wire>,
}

/// What every provider is shown beside its rows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Exposure {
    /// The prompt's embedding, or keys and values made of it.
    pub prompt: bool,
    /// Its rows of the noisy latents, or those of the prediction.
    pub latents: bool,
    /// Everybody's keys and values: from these alone the picture can be told.
    pub keys_and_values: bool,
    /// The U-Net's adapters, where it has any: their numbers, or their digest.
    pub adapters: bool,
}

/// A scheme with its options: how the U-Net is placed.
///
/// Options that nobody chose may stay open; [`Self::choices`] says what they can be, and a plan chooses. An open
/// option has a usual value, so that a scheme can always compute.
pub trait Scheme: Debug + Send + Sync {
    /// Its name, as `--scheme` takes it.
    fn name(&self) -> &'static str;

    /// Its name with what tells it from others like it, in a few words.
    fn label(&self) -> String {
        self.name().to_owned()
    }

    /// The options that tell one row of a benchmark from another, each by its name.
    fn details(&self) -> Vec<(&'static str, String)> {
        Vec::new()
    }

    /// What was chosen, for a person.
    fn in_words(&self) -> String {
        self.label()
    }

    /// Who does what, for reports.
    fn placement(&self) -> serde_json::Value {
        serde_json::Value::Null
    }

    /// For an audit, which knows the schemes that it attacks.
    fn as_any(&self) -> &dyn Any;

    /// Whether it computes on workers.
    fn needs_workers(&self) -> bool {
        true
    }

    /// Whether workers are of any use to it.
    fn can_use_workers(&self) -> bool {
        self.needs_workers()
    }

    /// Whether it is any of the others, by its [`Self::choices`], and none of its own.
    fn stands_for_others(&self) -> bool {
        false
    }

    /// How many workers it has where nobody says.
    fn usual_workers(&self) -> usize {
        4
    }

    /// The largest number of workers that can share latents of `rows`.
    fn most_workers(&self, _unet: &UNet, _rows: usize) -> usize {
        MAX_WORKERS
    }

    /// The same, knowing whether workers are behind a link; none where that changes nothing.
    fn linked(&self, _linked: bool) -> Option<Arc<dyn Scheme>> {
        None
    }

    /// The same, checking at random so large a share of what workers compute, 0 to 1: whoever answers wrong numbers is
    /// named, and computes no more in the run ([`crate::Error::WorkerWrong`]). None where it cannot.
    fn verified(&self, _share: f64) -> Option<Arc<dyn Scheme>> {
        None
    }

    /// The same, knowing that a picture takes so many U-Net calls; none where that makes no difference.
    fn of_calls(&self, _calls: usize) -> Option<Arc<dyn Scheme>> {
        None
    }

    /// The U-Net calls that [`Self::of_calls`] said.
    fn calls(&self) -> Option<usize> {
        None
    }

    /// What the open options can be under `rules`, all of them chosen in each; nothing where none is open. What is
    /// chosen and not allowed is for the policy's own check, which names the rule.
    fn choices(&self, _rules: &Rules<'_>) -> Vec<Arc<dyn Scheme>> {
        Vec::new()
    }

    /// `best`, the best of [`Self::choices`], with its `part`-th part done in other ways, where what one part takes
    /// does not depend on the others; none where there are no more parts.
    fn variants(
        &self,
        _best: &dyn Scheme,
        _part: usize,
        _levels: usize,
        _rules: &Rules<'_>,
    ) -> Option<Vec<Arc<dyn Scheme>>> {
        None
    }

    /// The ways that a comparison of all schemes tells apart; nothing where there is this one alone.
    fn ways(&self) -> Vec<Arc<dyn Scheme>> {
        Vec::new()
    }

    /// What it uses of what a policy lists, on a U-Net of so many levels.
    fn uses(&self, levels: usize) -> Uses;

    /// The least PSNR against the uncut picture that it promises, in dB; none where the two are equal to rounding.
    fn promised_psnr(&self) -> Option<f64> {
        None
    }

    /// How many of so many workers may put together what they have and still learn nothing of the picture; none where
    /// one alone learns something.
    ///
    /// # Errors
    /// [`crate::Error::Workers`].
    fn hidden_from(&self, _sizes: &Sizes, _workers: usize) -> Result<Option<usize>> {
        Ok(None)
    }

    /// What every provider is shown beside its rows.
    fn exposure(&self, levels: usize) -> Exposure;

    /// The rows that each of `workers` workers will be shown.
    ///
    /// # Errors
    /// [`lacuna_model::Error::TooManyStrips`].
    fn seen(&self, unet: &UNet, sizes: &Sizes, workers: usize) -> Result<Vec<Seen>>;

    /// That the workers of `fleet` are such as it can compute on.
    ///
    /// # Errors
    /// [`crate::Error::Workers`].
    fn check_fleet(&self, _sizes: &Sizes, _fleet: &FleetConfig) -> Result<()> {
        Ok(())
    }

    /// Counts the first two calls of a picture on `workers` workers. The first makes the prompt's keys and values,
    /// which stay, and may send whole what later calls send the changes of; all later ones are like the second.
    ///
    /// # Errors
    /// [`lacuna_model::Error::TooManyStrips`].
    fn first_calls(&self, unet: &UNet, sizes: &Sizes, workers: usize) -> Result<[Count; 2]>;

    /// Tensor prefixes of the layers whose parameters the user needs; none where these are all.
    ///
    /// # Errors
    /// None today: shapes alone cannot fail.
    fn user_layers(&self, unet: &UNet, sizes: &Sizes) -> Result<Option<HashSet<String>>>;

    /// The layers that workers compute without their adapters, which stay with the user, and whether the user holds their
    /// weights ([`lacuna_model::weights::Stored::load_apart`]); none where whoever computes has the adapters, too.
    ///
    /// # Errors
    /// As [`Self::user_layers`].
    fn apart(&self, _unet: &UNet, _sizes: &Sizes) -> Result<Option<Apart>> {
        Ok(None)
    }

    /// Tensor prefixes of the layers whose features are whole at the user's; none where these are all.
    ///
    /// # Errors
    /// As [`Self::user_layers`].
    fn user_features(&self, _unet: &UNet, _sizes: &Sizes) -> Result<Option<HashSet<String>>> {
        Ok(None)
    }

    /// Opens sessions on every worker of `config` for the model of `digest`; layer by layer, if the scheme does not
    /// say otherwise.
    ///
    /// # Errors
    /// As [`Fleet::open`]; [`lacuna_model::Error::TooManyStrips`].
    fn open<'a>(
        &'a self,
        config: &'a FleetConfig,
        digest: &'a str,
        _unet: &'a UNet,
        _sizes: &'a Sizes,
    ) -> BoxFuture<'a, Result<Fleet>> {
        Box::pin(Fleet::open(config, digest, |_| SessionKind::Layers, 1))
    }

    /// Predicts on the `fleet` that [`Self::open`] opened, with the user's part in `whole`.
    ///
    /// # Errors
    /// [`crate::Error::Model`] when the device does not give the prompt back.
    fn predictor<'a>(
        &self,
        unet: &'a UNet,
        sizes: &Sizes,
        whole: Whole,
        fleet: Fleet,
    ) -> Result<Box<dyn Predictor + 'a>>;
}

/// A scheme's options: flags, of which each may be left out.
pub trait Options: Args {
    /// The scheme's name.
    const NAME: &'static str;
    /// What the scheme is, in a line.
    const ABOUT: &'static str;

    /// The scheme with these options.
    fn scheme(self) -> Arc<dyn Scheme>;
}

/// A scheme for latents of one size.
#[derive(Clone, Debug)]
pub struct Setting {
    /// The scheme.
    pub scheme: Arc<dyn Scheme>,
    /// Sizes of the U-Net calls.
    pub sizes: Sizes,
    /// Whether the U-Net has adapters.
    pub adapted: bool,
}

impl Setting {
    /// `scheme` for latents of `[B, H, W]` of `unet` and a prompt of `tokens` tokens.
    pub fn new(scheme: Arc<dyn Scheme>, unet: &UNet, latents: [usize; 3], tokens: usize) -> Self {
        let sizes = Sizes {
            latents,
            levels: unet.levels(),
            tokens,
        };
        Self {
            scheme,
            sizes,
            adapted: false,
        }
    }

    /// The same sizes by another scheme.
    pub fn by(&self, scheme: Arc<dyn Scheme>) -> Self {
        Self {
            scheme,
            ..self.clone()
        }
    }

    /// The same, knowing whether the U-Net has adapters.
    pub fn adapted(self, adapted: bool) -> Self {
        Self { adapted, ..self }
    }

    /// The same, knowing whether workers are behind a link.
    pub fn linked(self, linked: bool) -> Self {
        match self.scheme.linked(linked) {
            Some(scheme) => self.by(scheme),
            None => self,
        }
    }

    /// The same, knowing that a picture takes so many U-Net calls.
    pub fn of_calls(self, calls: usize) -> Self {
        match self.scheme.of_calls(calls) {
            Some(scheme) => self.by(scheme),
            None => self,
        }
    }

    /// As [`Scheme::open`].
    ///
    /// # Errors
    /// As [`Scheme::open`].
    pub async fn open(&self, config: &FleetConfig, digest: &str, unet: &UNet) -> Result<Fleet> {
        self.scheme.open(config, digest, unet, &self.sizes).await
    }

    /// As [`Scheme::first_calls`].
    ///
    /// # Errors
    /// As [`Scheme::first_calls`].
    pub fn first_calls(&self, unet: &UNet, workers: usize) -> Result<[Count; 2]> {
        self.scheme.first_calls(unet, &self.sizes, workers)
    }

    /// Counts one U-Net call in the middle of a picture: nothing is new any more. Its work is what "the U-Net's
    /// work" is everywhere; what the first call of a picture does beside it is of [`Self::first_calls`].
    ///
    /// # Errors
    /// As [`Scheme::first_calls`].
    pub fn count(&self, unet: &UNet, workers: usize) -> Result<Count> {
        let [_, later] = self.first_calls(unet, workers)?;
        Ok(later)
    }

    /// The parameters of the layers that the user computes; the others' are never looked at here.
    ///
    /// # Errors
    /// As [`Scheme::user_layers`].
    pub fn user_parameters(&self, unet: &UNet) -> Result<UserParameters> {
        let all = list(unet);
        let Some(own) = self.scheme.user_layers(unet, &self.sizes)? else {
            // Whoever has all needs them to check others with, or to go on alone.
            let of_prompt = Vec::new();
            return Ok(UserParameters {
                held: all,
                of_prompt,
            });
        };
        let makers = unet.cross_attentions();
        let makers = makers.flat_map(|layer| [&layer.to_k.name, &layer.to_v.name]);
        let makers: HashSet<&str> = makers.map(String::as_str).collect();
        let all = all.into_iter();
        let own = all.filter(|parameter| own.contains(parameter.layer()));
        let (of_prompt, held) = own.partition(|parameter| makers.contains(parameter.layer()));
        Ok(UserParameters { held, of_prompt })
    }

    /// Predicts by the scheme on the `fleet` that [`Self::open`] opened; without one, here. The user's part is in
    /// `whole`.
    ///
    /// # Errors
    /// As [`Scheme::predictor`].
    pub fn predictor<'a>(
        &self,
        unet: &'a UNet,
        whole: Whole,
        fleet: Option<Fleet>,
    ) -> Result<Box<dyn Predictor + 'a>> {
        match fleet {
            Some(fleet) => self.scheme.predictor(unet, &self.sizes, whole, fleet),
            None => Ok(at_home(unet, whole)),
        }
    }
}
