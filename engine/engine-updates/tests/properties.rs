//! Whatever the operations and the value: what always holds.

use engine_updates::{MAX_PATH_SEGMENTS, MAX_SEGMENT_BYTES, Op, Path, apply};
use proptest::prelude::*;
use serde_json::{Value, json};

fn key() -> impl Strategy<Value = String> {
    prop_oneof![
        8 => "[ab]{1}",
        1 => Just(String::new()),
        1 => Just("__proto__".to_owned()),
        1 => (MAX_SEGMENT_BYTES - 1..MAX_SEGMENT_BYTES + 2).prop_map(|length| "k".repeat(length)),
    ]
}

fn value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        "[a-c]{0,3}".prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 32, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map(key(), inner, 0..4)
                .prop_map(|fields| Value::Object(fields.into_iter().collect())),
        ]
    })
}

fn path() -> impl Strategy<Value = Option<Path>> {
    prop::option::of(prop_oneof![
        key().prop_map(Path::Key),
        prop::collection::vec(key(), 0..4).prop_map(Path::Segments),
        (0..MAX_PATH_SEGMENTS + 2).prop_map(|length| Path::Segments(vec!["k".to_owned(); length])),
    ])
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        (key(), value()).prop_map(|(path, value)| Op::Set { path, value }),
        (key(), any::<i64>()).prop_map(|(path, by)| Op::Increment { path, by }),
        (key(), any::<i64>()).prop_map(|(path, by)| Op::Decrement { path, by }),
        (path(), value()).prop_map(|(path, value)| Op::Append { path, value }),
        (path(), value()).prop_map(|(path, value)| Op::Merge { path, value }),
        key().prop_map(|path| Op::Remove { path }),
    ]
}

proptest! {
    /// One that fails leaves the value as it was, and is the only one that is reported.
    #[test]
    fn all_or_nothing(current in prop::option::of(value()), op in op()) {
        let outcome = apply(vec![op], current.clone());
        prop_assert!(outcome.errors.len() <= 1);
        if let [error] = &outcome.errors[..] {
            prop_assert_eq!(error.op_index, 0);
            prop_assert_eq!(outcome.value, current.unwrap_or(json!({})));
        }
    }

    /// A list does what its operations do one by one, where none of them finds the value missing.
    #[test]
    fn a_list_is_its_operations_in_order(current in value(), ops in prop::collection::vec(op(), 0..8)) {
        let mut step_by_step = current.clone();
        let mut failed = Vec::new();
        for (index, op) in ops.iter().enumerate() {
            let outcome = apply(vec![op.clone()], Some(step_by_step));
            step_by_step = outcome.value;
            failed.extend(outcome.errors.iter().map(|error| (index, error.code())));
        }
        let outcome = apply(ops, Some(current));
        prop_assert_eq!(outcome.value, step_by_step);
        prop_assert_eq!(outcome.errors.iter().map(|error| (error.op_index, error.code())).collect::<Vec<_>>(), failed);
    }

    /// No operation brings a polluting or overlong key in by its path.
    #[test]
    fn paths_keep_their_limits(path in path()) {
        let value = apply(vec![Op::Append { path, value: json!(1) }], None).value;
        let mut at = &value;
        let mut levels = 0;
        while let Some((key, inner)) = at.as_object().and_then(|fields| fields.iter().next()) {
            prop_assert!(!key.is_empty() && key.len() <= MAX_SEGMENT_BYTES && key != "__proto__");
            at = inner;
            levels += 1;
        }
        prop_assert!(levels <= MAX_PATH_SEGMENTS);
    }

    /// Any JSON at all is read as operations, or refused.
    #[test]
    fn nothing_that_arrives_panics(ops in value(), current in value()) {
        if let Ok(ops) = serde_json::from_value::<Vec<Op>>(ops) {
            let _ = apply(ops, Some(current));
        }
    }
}
