//! What an audit found, as text, CSV and JSON.

use serde::Serialize;

use super::attacks::counting::Accuracy;
use super::score::Score;
use super::uniformity::Uniformity;

/// What one attack recovered.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Finding {
    /// The policy or scheme that was attacked.
    pub policy: String,
    /// Number of workers, each of a provider of its own.
    pub workers: usize,
    /// What was done.
    pub attack: String,
    /// From what.
    pub from: String,
    /// Of the pictures.
    pub score: Option<Score>,
    /// Of the prompt's words, or of answers about it.
    pub words: Option<Accuracy>,
    /// Of the words that a worker was sent, where that is what it has.
    pub uniformity: Option<Uniformity>,
    /// Whether it belongs to the short table: the attacker's choice among several alike.
    pub chosen: bool,
}

/// The chosen findings as lines of a Markdown table.
pub fn text(findings: &[Finding]) -> String {
    let mut lines = vec![
        "| policy | N | attack | PSNR seen | PSNR unseen | SSIM seen | SSIM unseen | words right | by chance |"
            .to_owned(),
        "|---|---|---|---|---|---|---|---|---|".to_owned(),
    ];
    let number =
        |x: Option<f64>, digits: usize| x.map_or(String::new(), |x| format!("{x:.digits$}"));
    let percent = |x: Option<f64>| x.map_or(String::new(), |x| format!("{:.0} %", 100.0 * x));
    lines.extend(findings.iter().filter(|f| f.chosen).map(|f| {
        let (score, words) = (f.score, f.words);
        format!(
            "| {} | {} | {} ({}) | {} | {} | {} | {} | {} | {} |",
            f.policy,
            f.workers,
            f.attack,
            f.from,
            number(score.and_then(|s| s.psnr_seen), 1),
            number(score.and_then(|s| s.psnr_unseen), 1),
            number(score.and_then(|s| s.ssim_seen), 2),
            number(score.and_then(|s| s.ssim_unseen), 2),
            percent(words.map(|w| w.right)),
            percent(words.map(|w| w.chance)),
        )
    }));
    lines.join("\n") + "\n"
}

/// All findings as CSV.
pub fn csv(findings: &[Finding]) -> String {
    let mut lines = vec![
        "policy,workers,attack,from,psnr_seen,psnr_unseen,ssim_seen,ssim_unseen,words_right,words_by_chance,chosen"
            .to_owned(),
    ];
    let number = |x: Option<f64>| x.map_or(String::new(), |x| format!("{x:.4}"));
    let quoted = |text: &str| format!("\"{}\"", text.replace('"', "\"\""));
    lines.extend(findings.iter().map(|f| {
        let numbers = [
            f.score.and_then(|s| s.psnr_seen),
            f.score.and_then(|s| s.psnr_unseen),
            f.score.and_then(|s| s.ssim_seen),
            f.score.and_then(|s| s.ssim_unseen),
            f.words.map(|w| w.right),
            f.words.map(|w| w.chance),
        ];
        let names = [
            quoted(&f.policy),
            f.workers.to_string(),
            quoted(&f.attack),
            quoted(&f.from),
        ];
        let fields = names.into_iter().chain(numbers.map(number));
        let fields: Vec<String> = fields.chain([f.chosen.to_string()]).collect();
        fields.join(",")
    }));
    lines.join("\n") + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finding(chosen: bool) -> Finding {
        Finding {
            policy: "private".into(),
            workers: 4,
            attack: "strips, \"all\"".into(),
            from: "t = 1".into(),
            score: Some(Score {
                psnr_seen: Some(12.345),
                psnr_unseen: Some(6.0),
                ssim_seen: Some(0.5),
                ssim_unseen: None,
            }),
            words: None,
            uniformity: None,
            chosen,
        }
    }

    #[test]
    fn the_short_table_has_what_was_chosen_and_the_file_all() {
        let findings = [finding(true), finding(false)];
        let table = text(&findings);
        assert_eq!(table.lines().count(), 3);
        assert!(table.contains("| 12.3 | 6.0 | 0.50 |  |"), "{table}");
        let csv = csv(&findings);
        assert_eq!(csv.lines().count(), 3);
        assert!(csv.contains("\"strips, \"\"all\"\"\",\"t = 1\",12.3450,6.0000,0.5000,,,,true"));
    }
}
