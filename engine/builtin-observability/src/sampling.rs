//! Which traces are kept.

use std::collections::{HashMap, VecDeque};

use crate::id::TraceId;
use crate::pattern;

/// Traces whose fate is remembered.
const MAX_REMEMBERED: usize = 10_000;

const NANOS_PER_SECOND: f64 = 1e9;

/// A share of 0 to 1.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Ratio(f64);

impl Ratio {
    pub(crate) const ALL: Self = Self(1.0);

    pub(crate) fn new(share: f64) -> Option<Self> {
        (0.0..=1.0).contains(&share).then_some(Self(share))
    }

    pub(crate) fn share(self) -> f64 {
        self.0
    }

    /// Whether something evenly spread falls into the share. All that keeps a smaller share keeps a larger one.
    pub(crate) fn keeps(self, spread: u64) -> bool {
        self.0 >= 1.0 || (spread as f64) < self.0 * (u64::MAX as f64)
    }
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Rule {
    /// Patterns of the span's name and its service; none is any.
    pub(crate) operation: Option<String>,
    pub(crate) service: Option<String>,
    pub(crate) rate: Ratio,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Rules {
    pub(crate) default: Ratio,
    pub(crate) rules: Vec<Rule>,
    /// A trace's later spans share the fate of its first.
    pub(crate) parent_based: bool,
    pub(crate) max_traces_per_second: Option<f64>,
}

impl Rules {
    /// The first rule that fits decides.
    fn rate(&self, name: &str, service: &str) -> Ratio {
        let fits =
            |wanted: &Option<String>, text: &str| wanted.as_ref().is_none_or(|wanted| pattern::matches(wanted, text));
        let rule = self.rules.iter().find(|rule| fits(&rule.operation, name) && fits(&rule.service, service));
        rule.map_or(self.default, |rule| rule.rate)
    }
}

/// Judges spans as they arrive.
pub(crate) struct Sampler {
    rules: Rules,
    /// Of traces: whether they were let in.
    remembered: HashMap<TraceId, bool>,
    order: VecDeque<TraceId>,
    tokens: f64,
    refilled_unix_nano: u64,
}

impl Sampler {
    pub(crate) fn new(rules: Rules) -> Self {
        let tokens = rules.max_traces_per_second.unwrap_or(0.0);
        Self { rules, remembered: HashMap::new(), order: VecDeque::new(), tokens, refilled_unix_nano: 0 }
    }

    pub(crate) fn rules(&self) -> &Rules {
        &self.rules
    }

    pub(crate) fn keeps(&mut self, now_unix_nano: u64, trace: TraceId, name: &str, service: &str) -> bool {
        let remembers = self.rules.parent_based || self.rules.max_traces_per_second.is_some();
        let past = self.remembered.get(&trace).copied();
        if self.rules.parent_based
            && let Some(kept) = past
        {
            return kept;
        }
        let in_share = self.rules.rate(name, service).keeps(trace.spread());
        let kept = in_share && past.unwrap_or_else(|| self.within_rate(now_unix_nano));
        // Without `parent_based` only the rate limit remembers, and it has not been asked about what no ratio keeps.
        if remembers && past.is_none() && (in_share || self.rules.parent_based) {
            self.remember(trace, kept);
        }
        kept
    }

    fn within_rate(&mut self, now_unix_nano: u64) -> bool {
        let Some(rate) = self.rules.max_traces_per_second else { return true };
        let passed = now_unix_nano.saturating_sub(self.refilled_unix_nano) as f64 / NANOS_PER_SECOND;
        self.refilled_unix_nano = self.refilled_unix_nano.max(now_unix_nano);
        self.tokens = (self.tokens + passed * rate).min(rate);
        if self.tokens < 1.0 {
            return false;
        }
        self.tokens -= 1.0;
        true
    }

    fn remember(&mut self, trace: TraceId, kept: bool) {
        if self.order.len() == MAX_REMEMBERED
            && let Some(oldest) = self.order.pop_front()
        {
            self.remembered.remove(&oldest);
        }
        self.remembered.insert(trace, kept);
        self.order.push_back(trace);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn ratio(share: f64) -> Ratio {
        Ratio::new(share).expect("a ratio")
    }

    fn rules(default: f64) -> Rules {
        Rules { default: ratio(default), rules: Vec::new(), parent_based: false, max_traces_per_second: None }
    }

    #[test]
    fn the_first_rule_that_fits_decides() {
        let rule = |operation: Option<&str>, service: Option<&str>, rate| Rule {
            operation: operation.map(str::to_owned),
            service: service.map(str::to_owned),
            rate: ratio(rate),
        };
        let rules = Rules {
            rules: vec![
                rule(Some("health*"), None, 0.0),
                rule(None, Some("pay?"), 1.0),
                rule(Some("*"), Some("noisy"), 0.0),
            ],
            ..rules(1.0)
        };
        let mut sampler = Sampler::new(rules);
        let mut keeps = |name, service| sampler.keeps(0, TraceId::random(), name, service);
        assert!(!keeps("healthz", "pay1"));
        assert!(keeps("charge", "pay1"));
        assert!(!keeps("work", "noisy"));
        assert!(keeps("work", "other"));
    }

    #[test]
    fn a_ratio_keeps_about_its_share_and_all_spans_of_a_trace_alike() {
        let mut sampler = Sampler::new(rules(0.25));
        let mut kept = 0;
        for _ in 0..4000 {
            let trace = TraceId::random();
            let first = sampler.keeps(0, trace, "a", "s");
            assert_eq!(sampler.keeps(0, trace, "b", "s"), first);
            kept += u32::from(first);
        }
        assert!((800..1200).contains(&kept), "{kept}");
        assert!(ratio(1.0).keeps(u64::MAX) && !ratio(0.0).keeps(0));
    }

    #[test]
    fn parent_based_lets_the_first_span_speak_for_its_trace() {
        let drop = Rule { operation: Some("drop".into()), service: None, rate: ratio(0.0) };
        for (parent_based, later) in [(true, false), (false, true)] {
            let mut sampler = Sampler::new(Rules { rules: vec![drop.clone()], parent_based, ..rules(1.0) });
            let trace = TraceId::random();
            assert!(!sampler.keeps(0, trace, "drop", "s"));
            assert_eq!(sampler.keeps(0, trace, "other", "s"), later);
        }
    }

    #[test]
    fn the_rate_limit_counts_traces_and_refills_with_time() {
        let mut sampler = Sampler::new(Rules { max_traces_per_second: Some(2.0), ..rules(1.0) });
        let first = TraceId::random();
        assert!(sampler.keeps(SECOND, first, "a", "s"));
        assert!(sampler.keeps(SECOND, first, "b", "s"), "the same trace costs nothing");
        assert!(sampler.keeps(SECOND, TraceId::random(), "a", "s"));
        let third = TraceId::random();
        assert!(!sampler.keeps(SECOND, third, "a", "s"));
        assert!(!sampler.keeps(9 * SECOND, third, "b", "s"), "a trace that was not let in stays out");
        assert!(sampler.keeps(9 * SECOND, TraceId::random(), "a", "s"));
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut sampler = Sampler::new(Rules { parent_based: true, ..rules(1.0) });
        for _ in 0..MAX_REMEMBERED + 100 {
            sampler.keeps(0, TraceId::random(), "a", "s");
        }
        assert_eq!(sampler.remembered.len(), MAX_REMEMBERED);
        assert_eq!(sampler.order.len(), MAX_REMEMBERED);
    }
}
