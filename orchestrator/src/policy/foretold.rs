//! What will be shown to whom, in words, before it is.

use lacuna_model::unet::UNet;
use lacuna_shares::precision::WORKERS;

use super::ledger::{Ledger, SLACK, View};
use super::{PRIVATE, Policy};
use crate::error::Result;
use crate::fleet::config::FleetConfig;
use crate::schemes::Setting;

/// A run that is about to begin.
#[derive(Clone, Copy, Debug)]
pub struct Run<'a> {
    /// What the run keeps to.
    pub policy: &'a Policy,
    /// Who computes.
    pub fleet: &'a FleetConfig,
    /// Whether there are adapters, be they of the U-Net or of text encoders alone.
    pub adapted: bool,
    /// Whether the picture is made from one that the user gives.
    pub given: bool,
    /// Whether workers may be reached in plain.
    pub insecure: bool,
}

impl Run<'_> {
    /// What is about to be done by `setting`, and what each provider will see, in lines.
    ///
    /// # Errors
    /// As [`Ledger::foresee`].
    pub fn foretell(&self, unet: &UNet, setting: &Setting) -> Result<Vec<String>> {
        let ledger = Ledger::foresee(unet, setting, self.fleet, &[])?;
        let quality = match setting.scheme.promised_psnr() {
            None => "the uncut picture".to_owned(),
            Some(db) => format!("{db:.0} dB at least from the uncut picture, by the demo model"),
        };
        let label = setting.scheme.label();
        let title = format!("{label} ({quality}); policy {}", self.policy.file.display());
        let seen = foretell(&ledger, self.policy, &Policy::private()?);
        let apart = setting.scheme.apart(unet, &setting.sizes)?;
        // Where they do not, it is said with what else will be seen.
        let stay = self.adapted && (!setting.adapted || apart.is_some());
        let adapters = stay.then(|| "the adapters (--lora) stay with you".to_owned());
        // What is computed from the picture has its rows in it, whatever is painted.
        let of_image = self.given && ledger.most().is_some_and(|view| !view.is_of_nothing());
        let of_image = of_image.then(|| {
            "these are rows of the picture that you give (--init-image), too, where it is kept"
                .to_owned()
        });
        let heard = (self.insecure && !self.fleet.is_own()).then(|| {
            "--insecure: whoever listens on the way to all workers has what all of them have"
                .to_owned()
        });
        let lines = std::iter::once(title).chain(seen);
        Ok(lines.chain(of_image).chain(adapters).chain(heard).collect())
    }
}

/// A line on what each provider will see, and one on what `policy` gives away beyond `private`, if it does;
/// nothing where there is no provider.
pub fn foretell(ledger: &Ledger, policy: &Policy, private: &Policy) -> Vec<String> {
    let Some(most) = ledger.most() else {
        return Vec::new();
    };
    let names: Vec<&str> = ledger.providers.keys().map(String::as_str).collect();
    let who = match names[..] {
        [one] => format!("provider {one} will see"),
        _ => format!("providers {} will each see", names.join(", ")),
    };
    let seen = match ledger.hidden_from {
        Some(n) if most.is_of_nothing() => format!("{}{}", sight(&most), unless(n)),
        _ => sight(&most),
    };
    let mut lines = vec![format!("{who} {seen}")];
    let weaker = policy.weaker_than(private);
    if !weaker.is_empty() {
        lines.push(format!(
            "the policy {} would allow more than {PRIVATE} does, as asked for: {}",
            policy.file.display(),
            weaker.join("; ")
        ));
    }
    lines
}

/// Who would have to collude for more than `n` to be too many.
fn unless(n: usize) -> String {
    match n {
        1 => ", unless two of them put together what they have".into(),
        _ => format!(", unless more than {n} of them put together what they have"),
    }
}

/// What is behind a view, in words.
pub fn sight(view: &View) -> String {
    if view.is_of_nothing() {
        return "nothing of the picture or the prompt: words that are uniform whatever these are"
            .into();
    }
    let rows = match view.rows > 1.0 - SLACK {
        true => "every row of the picture nearly as it is: all of it".to_owned(),
        false => format!(
            "at most {:.1} % of the picture's rows nearly as they are ({:.1} % with its neighbours' edges)",
            100.0 * view.rows,
            100.0 * view.rows_with_halo
        ),
    };
    let mut parts = vec![rows];
    if view.keys_and_values > view.rows + SLACK {
        parts.push("everybody's keys and values, which give all of the picture away".into());
    }
    if view.tiles[1] > 0.0 {
        let share = 100.0 * view.tiles[1];
        parts.push(format!(
            "{share:.0} % of the keys and values, hidden in a way that can be undone"
        ));
    }
    parts.push(match view.prompt {
        true => "what the prompt became, from which its words can be told".into(),
        false => "not the prompt, but enough to guess most of what it says (`lacuna audit`)".into(),
    });
    if view.adapters {
        parts.push("the adapters of the U-Net (--lora)".into());
    }
    parts.join("; ")
}

/// The same in a table's cell.
pub fn sight_in_short(ledger: &Ledger) -> String {
    let Some(most) = ledger.most() else {
        return "nothing".to_owned();
    };
    if most.is_of_nothing() {
        return "nothing (uniform words)".to_owned();
    }
    let mut short = format!("{:.1} % of the rows", 100.0 * most.rows);
    if most.keys_and_values > most.rows + SLACK {
        short.push_str(", all by keys and values");
    }
    if most.tiles[1] > 0.0 {
        short.push_str(", tiles");
    }
    if most.prompt {
        short.push_str(", the prompt");
    }
    if most.adapters {
        short.push_str(", the adapters");
    }
    short
}

/// What can be done where a provider would compute more than `allowed` of the rows, of a picture that is cut into
/// `strips` at most: goes on behind the reason.
pub fn rows_advice(ledger: &Ledger, allowed: f64, strips: usize) -> String {
    // As many as are there are not enough, or it would not be refused.
    let needed = (1.0 / allowed - SLACK).ceil();
    let needed = needed.max(ledger.providers.len() as f64 + 1.0);
    let have = match ledger.providers.len() {
        1 => "with one provider there is nothing to share out".to_owned(),
        n => format!(
            "of {n} providers one computes {:.1} %",
            100.0 * ledger.most_rows()
        ),
    };
    let mut more = match needed <= strips as f64 {
        true => format!("workers of {needed} providers; "),
        // Nor could more providers be given that many strips.
        false => String::new(),
    };
    if WORKERS.contains(&ledger.providers.len()) {
        more += "--scheme blind, which shows none of them anything, for more bytes and of your own work; ";
    }
    format!("; {have}. Possible are: {more}{}", by_showing_more(ledger))
}

/// The same where a worker was lost: who computed it had its rows before, and rows of the lost one's now.
pub fn advice_after_loss(ledger: &Ledger) -> String {
    format!(
        ", what it saw before counted in. Possible are: that the worker is mended, and the picture begun again; a spare \
         (spare = true in the fleet file); {}",
        by_showing_more(ledger)
    )
}

fn by_showing_more(ledger: &Ledger) -> String {
    // A flag that holds the share, of three digits.
    let flag = (ledger.most_rows() * 1000.0 - SLACK).ceil() / 1000.0;
    let shows = match flag >= 1.0 {
        true => "a provider every row, so all of the picture".to_owned(),
        false => format!(
            "a provider up to {:.1} % of the rows nearly as they are, and more of what the prompt says",
            100.0 * flag
        ),
    };
    format!("--max-rows {flag}, which shows {shows}; or --scheme local, which shows nothing")
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn ledger(shares: &[f64]) -> Ledger {
        let view = |(i, rows): (usize, &f64)| {
            let view = View {
                workers: 1,
                rows: *rows,
                rows_with_halo: (rows + 0.1).min(1.0),
                keys_and_values: *rows,
                ..View::default()
            };
            (format!("p{i}"), view)
        };
        Ledger {
            providers: shares.iter().enumerate().map(view).collect(),
            hidden_from: None,
        }
    }

    fn policy(name: &str) -> Policy {
        Policy::open(Path::new(name)).unwrap()
    }

    #[test]
    fn advice_names_a_share_that_is_enough() {
        for (shares, flag, need) in [
            (
                &[0.5, 0.5][..],
                "--max-rows 0.5,",
                "of 2 providers one computes 50.0 %",
            ),
            (&[0.25, 0.375, 0.375], "--max-rows 0.375,", "37.5 %"),
            (&[0.375, 0.375, 0.25], "--max-rows 0.375,", "of 3 providers"),
            (&[1.0 / 3.0; 3], "--max-rows 0.334,", "33.3 %"),
            (&[1.0], "--max-rows 1,", "nothing to share out"),
        ] {
            let ledger = ledger(shares);
            let advice = rows_advice(&ledger, 0.25, 8);
            assert_eq!(
                advice.contains("--scheme blind"),
                shares.len() > 1,
                "{advice}"
            );
            for part in [flag, need, "workers of 4 providers", "--scheme local"] {
                assert!(advice.contains(part), "{part:?} is not in {advice}");
            }
            let flag = flag.trim_start_matches("--max-rows ").trim_end_matches(',');
            assert!(flag.parse::<f64>().unwrap() + SLACK >= ledger.most_rows());
        }
        assert!(rows_advice(&ledger(&[1.0]), 0.25, 8).contains("all of the picture"));
        // No fleet is cut so fine.
        assert!(!rows_advice(&ledger(&[0.5, 0.5]), 0.1, 8).contains("workers of"));
        let lost = advice_after_loss(&ledger(&[0.5, 0.25, 0.25]));
        for part in ["spare = true", "begun again", "--max-rows 0.5,"] {
            assert!(lost.contains(part), "{part:?} is not in {lost}");
        }
    }

    #[test]
    fn what_is_weaker_than_private_is_said() {
        let private = policy(PRIVATE);
        let ledger = ledger(&[0.25; 4]);
        let lines = foretell(&ledger, &private, &private);
        assert_eq!(lines.len(), 1, "{lines:?}");
        assert!(lines[0].starts_with("providers p0, p1, p2, p3 will each see at most 25.0 %"));
        let lines = foretell(&ledger, &policy("fast"), &private);
        for rule in ["max_rows = 1", "prompt = shared"] {
            assert!(lines[1].contains(rule), "{lines:?}");
        }
        assert!(foretell(&Ledger::default(), &private, &private).is_empty());
    }

    #[test]
    fn what_gives_the_picture_away_is_said() {
        let mut view = View {
            rows: 0.25,
            keys_and_values: 1.0,
            prompt: true,
            ..View::default()
        };
        let said = sight(&view);
        assert!(
            said.contains("all of the picture") && said.contains("words"),
            "{said}"
        );
        view.rows = 1.0;
        assert!(sight(&view).contains("every row"));
        view.prompt = false;
        assert!(sight(&view).contains("guess most"));
    }
}
