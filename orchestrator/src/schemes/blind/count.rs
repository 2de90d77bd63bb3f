//! What shares send, from shapes alone.

use std::collections::{HashMap, HashSet};

use lacuna_model::survey::survey;
use lacuna_model::unet::UNet;

use super::groups::Groups;
use super::options::Blind;
use super::sent::Sent;
use crate::error::Result;
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
    let all = options.sent(unet, sizes)?;
    // What is sent for several layers is sent at the first of them.
    let rest = all.iter().flat_map(|sent| sent.layers.iter().skip(1));
    let rest: HashSet<&str> = rest.map(|layer| layer.layer.as_str()).collect();
    let sent: HashMap<&str, &Sent> = all.iter().map(|sent| (sent.name(), sent)).collect();
    let mut count = Count::new(workers);
    let mut once = 0;
    for operation in survey(unet, sizes.latents, sizes.tokens)? {
        if operation.makes_prompt_keys() {
            once += operation.flop;
            continue;
        }
        if rest.contains(operation.layer.as_str()) {
            continue;
        }
        let Some(sent) = sent.get(operation.layer.as_str()) else {
            count.user_flop += operation.flop;
            if let Some(exchange) = count.exchanges.last_mut() {
                exchange.user_flop += operation.flop;
            }
            continue;
        };
        let of_group = sent.of_entries(groups.entries);
        let carries = of_group.carries_flop(groups.shares(), groups.size) * groups.number as u64;
        count.user_flop += carries;
        count
            .workers_flop
            .iter_mut()
            .for_each(|flop| *flop += of_group.flop());
        let (up_bits, down_bits) = (groups.share_bits(), groups.shares().down());
        let bands = of_group.bands(of_group.bands_at(up_bits))?;
        let up = of_group.bytes_up(&bands, up_bits);
        let in_bands = of_group.bytes_down(&bands, down_bits);
        let whole = of_group.bytes_down(&of_group.bands(1)?, down_bits);
        let of = |share: usize, seed: usize| -> Vec<usize> {
            let each = 0..workers;
            let each = each.map(|worker| match groups.holds_share(worker) {
                true => share,
                false => seed,
            });
            each.collect()
        };
        count.exchanges.push(Counted {
            label: operation.layer,
            kind: of_group.kind(),
            up: of(up, 0),
            down: of(in_bands, whole),
            bands: bands.len(),
            ahead: (workers - groups.number) * whole,
            workers_flop: of_group.flop() * workers as u64,
            user_flop: carries,
        });
    }
    let first = Count {
        user_flop: count.user_flop + once,
        ..count.clone()
    };
    Ok([first, count])
}
