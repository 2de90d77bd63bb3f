//! What shares send, from shapes alone.

use std::collections::HashMap;

use lacuna_model::survey::survey;
use lacuna_model::unet::UNet;

use super::groups::Groups;
use super::options::Blind;
use super::sent::{Sent, sent};
use crate::error::Result;
use crate::fleet::tally::Kind;
use crate::schemes::Sizes;
use crate::schemes::count::{Count, Counted};

/// What the first two U-Net calls of a picture send to `workers` workers. They differ in the prompt's keys and
/// values, which the user makes once.
///
/// # Errors
/// As [`Groups::new`].
pub(super) fn first_calls(
    unet: &UNet,
    sizes: &Sizes,
    options: &Blind,
    workers: usize,
) -> Result<[Count; 2]> {
    let groups = Groups::new(options, sizes, workers)?;
    let sent: HashMap<String, Sent> = sent(unet, sizes)?
        .into_iter()
        .map(|sent| (sent.layer.clone(), sent))
        .collect();
    let mut count = Count::new(workers);
    let mut once = 0;
    for operation in survey(unet, sizes.latents, sizes.tokens)? {
        if operation.makes_prompt_keys() {
            once += operation.flop;
            continue;
        }
        let Some(sent) = sent.get(&operation.layer) else {
            count.user_flop += operation.flop;
            if let Some(exchange) = count.exchanges.last_mut() {
                exchange.user_flop += operation.flop;
            }
            continue;
        };
        let of_group = sent.of_entries(groups.entries);
        let carries = of_group.carries_flop(groups.size) * groups.number as u64;
        count.user_flop += carries;
        count
            .workers_flop
            .iter_mut()
            .for_each(|flop| *flop += of_group.flop);
        let up = Sent::bytes(of_group.features(), groups.share_bits());
        let down = Sent::bytes(of_group.products(), options.precision().down());
        let is_last = |worker: usize| groups.holds_share(worker);
        count.exchanges.push(Counted {
            label: operation.layer,
            kind: Kind::Conv,
            up: (0..workers)
                .map(|worker| if is_last(worker) { up } else { 0 })
                .collect(),
            down: vec![down; workers],
            ahead: (workers - groups.number) * down,
            workers_flop: of_group.flop * workers as u64,
            user_flop: carries,
        });
    }
    let first = Count {
        user_flop: count.user_flop + once,
        ..count.clone()
    };
    Ok([first, count])
}
