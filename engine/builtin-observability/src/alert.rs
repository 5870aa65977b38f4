//! Alerts: metrics compared with thresholds, and when to say so.

use serde_json::{Value, json};

use crate::time::{NANOS_PER_SECOND, nanos_to_millis};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Operator {
    GreaterThan,
    GreaterThanOrEqual,
    LessThan,
    LessThanOrEqual,
    Equal,
    NotEqual,
}

impl Operator {
    pub(crate) const ALL: [(Self, &'static str, &'static str); 6] = [
        (Self::GreaterThan, "greaterthan", ">"),
        (Self::GreaterThanOrEqual, "greaterthanorequal", ">="),
        (Self::LessThan, "lessthan", "<"),
        (Self::LessThanOrEqual, "lessthanorequal", "<="),
        (Self::Equal, "equal", "=="),
        (Self::NotEqual, "notequal", "!="),
    ];

    pub(crate) fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|(_, name, symbol)| *name == text || *symbol == text).map(|(operator, ..)| operator)
    }

    fn name(self) -> &'static str {
        match self {
            Self::GreaterThan => "greaterthan",
            Self::GreaterThanOrEqual => "greaterthanorequal",
            Self::LessThan => "lessthan",
            Self::LessThanOrEqual => "lessthanorequal",
            Self::Equal => "equal",
            Self::NotEqual => "notequal",
        }
    }

    fn holds(self, value: f64, threshold: f64) -> bool {
        match self {
            Self::GreaterThan => value > threshold,
            Self::GreaterThanOrEqual => value >= threshold,
            Self::LessThan => value < threshold,
            Self::LessThanOrEqual => value <= threshold,
            Self::Equal => value == threshold,
            Self::NotEqual => value != threshold,
        }
    }
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Action {
    Log,
    Webhook(hyper::Uri),
    Function(String),
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Alert {
    pub(crate) name: String,
    pub(crate) metric: String,
    pub(crate) threshold: f64,
    pub(crate) operator: Operator,
    pub(crate) window_seconds: u64,
    pub(crate) action: Action,
    pub(crate) enabled: bool,
    pub(crate) cooldown_seconds: u64,
}

#[derive(Debug, Clone, Default)]
struct State {
    firing: bool,
    evaluated_unix_nano: Option<u64>,
    triggered_unix_nano: Option<u64>,
    value: Option<f64>,
}

/// An alert that is to be told about.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Raised {
    pub(crate) alert: Alert,
    pub(crate) value: f64,
    pub(crate) at_unix_nano: u64,
}

impl Raised {
    pub(crate) fn json(&self) -> Value {
        json!({
            "name": self.alert.name,
            "metric": self.alert.metric,
            "value": self.value,
            "threshold": self.alert.threshold,
            "operator": self.alert.operator.name(),
            "timestamp": nanos_to_millis(self.at_unix_nano),
        })
    }
}

/// The alerts, and how each stands.
#[derive(Default)]
pub(crate) struct Alerts {
    alerts: Vec<(Alert, State)>,
}

impl Alerts {
    /// Takes new rules; one that is as it was keeps its state.
    pub(crate) fn replace(&mut self, rules: &[Alert]) {
        let mut old = std::mem::take(&mut self.alerts);
        let state = |rule: &Alert| {
            let at = old.iter().position(|(alert, _)| alert == rule);
            at.map_or_else(State::default, |at| old.swap_remove(at).1)
        };
        let states: Vec<State> = rules.iter().map(state).collect();
        self.alerts = rules.iter().cloned().zip(states).collect();
    }

    pub(crate) fn rules(&self) -> impl Iterator<Item = &Alert> {
        self.alerts.iter().map(|(alert, _)| alert)
    }

    /// Looks at every alert; `value` knows what a metric did in a window of so many nanoseconds. An alert that goes on
    /// firing is told again after its cool-down.
    pub(crate) fn evaluate(&mut self, now_unix_nano: u64, value: impl Fn(&str, u64) -> Option<f64>) -> Vec<Raised> {
        let mut raised = Vec::new();
        for (alert, state) in self.alerts.iter_mut().filter(|(alert, _)| alert.enabled) {
            let current = value(&alert.metric, alert.window_seconds.saturating_mul(NANOS_PER_SECOND));
            state.evaluated_unix_nano = Some(now_unix_nano);
            state.value = current;
            state.firing = current.is_some_and(|value| alert.operator.holds(value, alert.threshold));
            let cooldown = alert.cooldown_seconds.saturating_mul(NANOS_PER_SECOND);
            let is_cool = state.triggered_unix_nano.is_none_or(|last| now_unix_nano.saturating_sub(last) >= cooldown);
            if let Some(value) = current.filter(|_| state.firing && is_cool) {
                state.triggered_unix_nano = Some(now_unix_nano);
                raised.push(Raised { alert: alert.clone(), value, at_unix_nano: now_unix_nano });
            }
        }
        raised
    }

    /// `engine::alerts::list`.
    pub(crate) fn json(&self, now_unix_nano: u64) -> Value {
        let alert = |(alert, state): &(Alert, State)| {
            json!({
                "name": alert.name,
                "firing": state.firing,
                "last_evaluated": state.evaluated_unix_nano.map(nanos_to_millis),
                "last_triggered": state.triggered_unix_nano.map(nanos_to_millis),
                "current_value": state.value,
                "threshold": alert.threshold,
                "operator": alert.operator.name(),
            })
        };
        let rule = |alert: &Alert| {
            let action = match &alert.action {
                Action::Log => json!({"type": "log"}),
                // Its query may hold a secret.
                Action::Webhook(url) => json!({"type": "webhook", "host": url.host()}),
                Action::Function(path) => json!({"type": "function", "path": path}),
            };
            json!({
                "name": alert.name,
                "metric": alert.metric,
                "threshold": alert.threshold,
                "operator": alert.operator.name(),
                "window_seconds": alert.window_seconds,
                "cooldown_seconds": alert.cooldown_seconds,
                "enabled": alert.enabled,
                "action": action,
            })
        };
        json!({
            "alerts": self.alerts.iter().map(alert).collect::<Vec<_>>(),
            "rules": self.rules().map(rule).collect::<Vec<_>>(),
            "firing_count": self.alerts.iter().filter(|(_, state)| state.firing).count(),
            "timestamp": nanos_to_millis(now_unix_nano),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = NANOS_PER_SECOND;

    fn alert(operator: Operator) -> Alert {
        Alert {
            name: "a".into(),
            metric: "m".into(),
            threshold: 10.0,
            operator,
            window_seconds: 60,
            action: Action::Log,
            enabled: true,
            cooldown_seconds: 60,
        }
    }

    #[test]
    fn every_operator_compares_as_it_is_called() {
        let holds = |value: f64| {
            Operator::ALL
                .into_iter()
                .filter(|(operator, ..)| operator.holds(value, 10.0))
                .map(|(.., s)| s)
                .collect::<Vec<_>>()
        };
        assert_eq!(holds(11.0), [">", ">=", "!="]);
        assert_eq!(holds(10.0), [">=", "<=", "=="]);
        assert_eq!(holds(9.0), ["<", "<=", "!="]);
        assert_eq!(holds(f64::NAN), ["!="]);
        for (operator, name, symbol) in Operator::ALL {
            assert_eq!((Operator::parse(name), Operator::parse(symbol)), (Some(operator), Some(operator)));
            assert_eq!(operator.name(), name);
        }
        assert_eq!(Operator::parse("=>"), None);
    }

    #[test]
    fn an_alert_that_goes_on_firing_is_told_again_after_its_cool_down() {
        let mut alerts = Alerts::default();
        alerts.replace(&[alert(Operator::GreaterThan)]);
        let told: Vec<usize> = [(0, 5.0), (10, 11.0), (20, 12.0), (69, 12.0), (70, 12.0), (80, 1.0), (90, 20.0)]
            .into_iter()
            .map(|(seconds, value)| alerts.evaluate(seconds * SECOND, |_, _| Some(value)).len())
            .collect();
        assert_eq!(told, [0, 1, 0, 0, 1, 0, 0]);
        let list = alerts.json(90 * SECOND);
        assert_eq!(list["firing_count"], 1);
        assert_eq!(
            (&list["alerts"][0]["last_triggered"], &list["alerts"][0]["current_value"]),
            (&json!(70_000), &json!(20.0))
        );
    }

    #[test]
    fn the_window_is_asked_for_and_no_value_fires_nothing() {
        let mut alerts = Alerts::default();
        alerts.replace(&[alert(Operator::LessThan), Alert { enabled: false, ..alert(Operator::LessThan) }]);
        assert_eq!(alerts.evaluate(0, |_, _| None), []);
        let raised = alerts.evaluate(0, |metric, window| (metric == "m" && window == 60 * SECOND).then_some(1.0));
        assert_eq!(raised.len(), 1);
        assert_eq!(raised[0].json()["operator"], "lessthan");
    }

    #[test]
    fn rules_that_stay_as_they_are_keep_their_cool_down() {
        let mut alerts = Alerts::default();
        let (one, other) = (alert(Operator::GreaterThan), Alert { name: "b".into(), ..alert(Operator::GreaterThan) });
        alerts.replace(std::slice::from_ref(&one));
        assert_eq!(alerts.evaluate(0, |_, _| Some(11.0)).len(), 1);
        alerts.replace(&[other.clone(), one]);
        let raised = alerts.evaluate(SECOND, |_, _| Some(11.0));
        assert_eq!(raised.iter().map(|raised| &raised.alert).collect::<Vec<_>>(), [&other]);
    }
}
