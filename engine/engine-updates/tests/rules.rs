//! A table of examples for every rule of updates.

use engine_updates::{Op, apply};
use serde_json::{Value, json};

/// Applies `ops` to `current` (`None`: missing) and returns the value and the errors' codes with their indexes.
fn updated(current: Option<Value>, ops: &Value) -> (Value, Vec<(usize, String)>) {
    let ops: Vec<Op> = serde_json::from_value(ops.clone()).expect("operations");
    let outcome = apply(ops, current);
    (outcome.value, outcome.errors.iter().map(|error| (error.op_index, error.code())).collect())
}

/// One operation that succeeds.
fn check(current: impl Into<Option<Value>>, op: Value, expected: Value) {
    let (value, errors) = updated(current.into(), &json!([op]));
    assert_eq!((value, errors), (expected, vec![]), "{op}");
}

/// One operation that fails and leaves the value as it was.
fn refused(current: impl Into<Option<Value>>, op: Value, code: &str) {
    let current = current.into();
    let (value, errors) = updated(current.clone(), &json!([op]));
    assert_eq!(errors, [(0, code.to_owned())], "{op}");
    assert_eq!(value, current.unwrap_or(json!({})), "{op}");
}

#[test]
fn set_replaces_the_value_or_one_key_of_its_first_level() {
    check(None, json!({"type": "set", "path": "", "value": 7}), json!(7));
    check(json!({"a": 1}), json!({"type": "set", "path": "", "value": [1]}), json!([1]));
    check(json!({"a": 1}), json!({"type": "set", "path": ""}), json!(null));
    check(None, json!({"type": "set", "path": "a", "value": 1}), json!({"a": 1}));
    check(json!({"a": 1}), json!({"type": "set", "path": "a.b", "value": 2}), json!({"a": 1, "a.b": 2}));
    check(json!({"a": 1}), json!({"type": "set", "path": "a"}), json!({"a": null}));
    for no_object in [json!(null), json!(1), json!("text"), json!([])] {
        refused(no_object, json!({"type": "set", "path": "a", "value": 1}), "set.target_not_object");
    }
}

#[test]
fn numbers_go_up_and_down_and_never_overflow() {
    check(None, json!({"type": "increment", "path": "n", "by": 5}), json!({"n": 5}));
    check(None, json!({"type": "decrement", "path": "n", "by": 5}), json!({"n": -5}));
    check(json!({"n": 1}), json!({"type": "increment", "path": "n", "by": -3}), json!({"n": -2}));
    check(json!({"n": 0.5}), json!({"type": "increment", "path": "n", "by": 2}), json!({"n": 2.5}));
    check(json!({"n": 0.5}), json!({"type": "decrement", "path": "n", "by": 2}), json!({"n": -1.5}));
    check(None, json!({"type": "increment", "path": "", "by": 2}), json!(2));
    check(json!(40), json!({"type": "decrement", "path": "", "by": 2}), json!(38));
    check(json!(i64::MAX), json!({"type": "decrement", "path": "", "by": i64::MAX}), json!(0));
    check(json!(-1), json!({"type": "decrement", "path": "", "by": i64::MIN}), json!(i64::MAX));
    for kind in ["increment", "decrement"] {
        let op = |path: &str| json!({"type": kind, "path": path, "by": 1});
        for no_number in [json!("1"), json!(null), json!([]), json!({}), json!(true)] {
            refused(json!({ "n": no_number }), op("n"), &format!("{kind}.not_number"));
            refused(no_number, op(""), &format!("{kind}.not_number"));
        }
        refused(json!([1]), op("n"), &format!("{kind}.target_not_object"));
    }
    refused(json!(i64::MAX), json!({"type": "increment", "path": "", "by": 1}), "increment.not_number");
    refused(json!(u64::MAX), json!({"type": "increment", "path": "", "by": 0}), "increment.not_number");
    refused(json!(i64::MIN), json!({"type": "decrement", "path": "", "by": 1}), "decrement.not_number");
    refused(None, json!({"type": "decrement", "path": "n", "by": i64::MIN}), "decrement.not_number");
}

#[test]
fn append_pushes_concatenates_and_begins() {
    let append = |path: Value, value: Value| json!({"type": "append", "path": path, "value": value});
    check(json!([1]), append(json!(""), json!(2)), json!([1, 2]));
    check(json!([1]), json!({"type": "append", "value": [2]}), json!([1, [2]]));
    check(json!("ab"), append(json!([]), json!("c")), json!("abc"));
    check(json!({"log": [1]}), append(json!("log"), json!("x")), json!({"log": [1, "x"]}));
    check(json!({"log": "a"}), append(json!("log"), json!("b")), json!({"log": "ab"}));
    check(json!({"a": {"b": [1]}}), append(json!(["a", "b"]), json!(2)), json!({"a": {"b": [1, 2]}}));
    check(json!({"a": {"b": "x"}}), append(json!(["a", "b"]), json!("y")), json!({"a": {"b": "xy"}}));
    // Where nothing is, or null: text begins a text, but on a deeper level it begins a list.
    for nothing in [None, Some(json!(null))] {
        check(nothing.clone(), append(json!(null), json!("text")), json!("text"));
        check(nothing, append(json!(""), json!({"a": 1})), json!([{"a": 1}]));
    }
    for nothing in [json!({}), json!({"k": null})] {
        check(nothing.clone(), append(json!("k"), json!("text")), json!({"k": "text"}));
        check(nothing.clone(), append(json!(["k"]), json!("text")), json!({"k": "text"}));
        check(nothing, append(json!("k"), json!(1)), json!({"k": [1]}));
    }
    for nothing in [json!({}), json!({"a": null}), json!({"a": {"b": null}}), json!({"a": "in the way"})] {
        check(nothing, append(json!(["a", "b"]), json!("text")), json!({"a": {"b": ["text"]}}));
    }
    refused(json!({"k": 1}), append(json!("k"), json!(1)), "append.type_mismatch");
    refused(json!({"k": "text"}), append(json!("k"), json!(1)), "append.type_mismatch");
    refused(json!({"k": {}}), append(json!(["k"]), json!("text")), "append.type_mismatch");
    refused(json!({}), append(json!(""), json!("text")), "append.type_mismatch");
    refused(json!([]), append(json!("k"), json!(1)), "append.target_not_object");
    refused(json!(null), append(json!(["a", "b"]), json!(1)), "append.target_not_object");
}

#[test]
fn merge_is_shallow_and_clears_its_way() {
    let merge = |path: Value, value: Value| json!({"type": "merge", "path": path, "value": value});
    check(None, merge(json!(null), json!({"a": 1})), json!({"a": 1}));
    check(json!({"a": {"x": 1}, "b": 2}), merge(json!(""), json!({"a": {"y": 1}})), json!({"a": {"y": 1}, "b": 2}));
    check(json!([1]), merge(json!([]), json!({"a": 1})), json!({"a": 1}));
    check(json!({"a": {"x": 1}}), merge(json!("a"), json!({"y": 2})), json!({"a": {"x": 1, "y": 2}}));
    check(json!({"a": 1}), merge(json!(["a", "b.c"]), json!({"y": 2})), json!({"a": {"b.c": {"y": 2}}}));
    check(json!({"a": 1}), merge(json!(null), json!({"a": null})), json!({"a": null}));
    for value in [json!(1), json!([]), json!(null), json!("text")] {
        refused(json!({"a": 1}), merge(json!("a"), value), "merge.value.not_an_object");
    }
}

#[test]
fn merged_objects_have_limits() {
    let merge = |value: Value| json!({"type": "merge", "value": value});
    let wide = |keys: usize| Value::Object((0..keys).map(|key| (key.to_string(), json!(1))).collect());
    check(None, merge(wide(1024)), wide(1024));
    refused(None, merge(wide(1025)), "merge.value.too_many_keys");
    let deep = |levels: usize| (0..levels).fold(json!(1), |inner, _| json!({ "k": inner }));
    check(None, merge(deep(16)), deep(16));
    refused(None, merge(deep(17)), "merge.value.too_deep");
    refused(None, merge(json!({"k": (0..16).fold(json!(1), |inner, _| json!([inner]))})), "merge.value.too_deep");
    for key in ["__proto__", "constructor", "prototype"] {
        refused(None, merge(json!({ key: 1 })), "merge.value.proto_polluted");
        refused(None, merge(json!({"a": [{ key: 1 }]})), "merge.value.proto_polluted");
    }
}

#[test]
fn remove_takes_a_key_away_and_keeps_the_others_order() {
    check(json!({"a": 1, "b": 2, "c": 3}), json!({"type": "remove", "path": "a"}), json!({"b": 2, "c": 3}));
    let left = updated(Some(json!({"a": 1, "b": 2, "c": 3})), &json!([{"type": "remove", "path": "a"}])).0;
    assert_eq!(left.to_string(), r#"{"b":2,"c":3}"#);
    check(json!({"a": 1}), json!({"type": "remove", "path": "b"}), json!({"a": 1}));
    check(json!({"a": 1}), json!({"type": "remove", "path": ""}), json!(null));
    check(None, json!({"type": "remove", "path": "a"}), json!({}));
    refused(json!("text"), json!({"type": "remove", "path": "a"}), "remove.target_not_object");
}

#[test]
fn paths_have_limits() {
    let ops = |path: Value| {
        [
            ("set", json!({"type": "set", "path": path, "value": 1})),
            ("increment", json!({"type": "increment", "path": path, "by": 1})),
            ("decrement", json!({"type": "decrement", "path": path, "by": 1})),
            ("append", json!({"type": "append", "path": path, "value": 1})),
            ("merge", json!({"type": "merge", "path": path, "value": {}})),
            ("remove", json!({"type": "remove", "path": path})),
        ]
    };
    for (name, op) in ops(json!("ä".repeat(128))) {
        assert_eq!(updated(None, &json!([op])).1, [], "{name}");
    }
    for (name, op) in ops(json!("a".repeat(257))) {
        refused(json!({"a": 1}), op, &format!("{name}.path.segment_too_long"));
    }
    for key in ["__proto__", "constructor", "prototype"] {
        for (name, op) in ops(json!(key)) {
            refused(json!({"a": 1}), op, &format!("{name}.path.proto_polluted"));
        }
    }
    for (name, value) in [("append", json!(1)), ("merge", json!({}))] {
        let op = |path: Value| json!({"type": name, "path": path, "value": value});
        assert_eq!(updated(None, &json!([op(json!(vec!["k"; 32]))])).1, []);
        refused(json!({"a": 1}), op(json!(vec!["k"; 33])), &format!("{name}.path.too_deep"));
        refused(json!({"a": 1}), op(json!(["k", ""])), &format!("{name}.path.empty_segment"));
        refused(json!({"a": 1}), op(json!(["k", "a".repeat(257)])), &format!("{name}.path.segment_too_long"));
        refused(json!({"a": 1}), op(json!(["k", "constructor"])), &format!("{name}.path.proto_polluted"));
    }
}

#[test]
fn operations_that_fail_are_skipped_and_reported_by_their_index() {
    let ops = json!([
        {"type": "increment", "path": "bad", "by": 1},
        {"type": "set", "path": "ok", "value": true},
        {"type": "append", "path": "events", "value": 1},
        {"type": "increment", "path": "count", "by": 1},
    ]);
    let (value, errors) = updated(Some(json!({"bad": "text", "events": {}})), &ops);
    assert_eq!(value, json!({"bad": "text", "events": {}, "ok": true, "count": 1}));
    assert_eq!(errors, [(0, "increment.not_number".to_owned()), (2, "append.type_mismatch".to_owned())]);
}

#[test]
fn an_error_is_told_by_index_code_and_message() {
    let ops: Vec<Op> = serde_json::from_value(json!([{"type": "remove", "path": "a"}])).expect("operations");
    let outcome = apply(ops, Some(json!(1)));
    let told = serde_json::to_value(&outcome.errors).expect("JSON");
    let message = "could not remove: the value is no object, so it has no keys";
    assert_eq!(told, json!([{"op_index": 0, "code": "remove.target_not_object", "message": message}]));
}

#[test]
fn operations_of_another_shape_are_no_operations() {
    for op in [
        json!({"type": "multiply", "path": "a", "by": 2}),
        json!({"type": "set", "value": 1}),
        json!({"type": "increment", "path": "a"}),
        json!({"type": "increment", "path": "a", "by": 0.5}),
        json!({"type": "append", "path": 7, "value": 1}),
        json!({"type": "append", "path": ["a", 7], "value": 1}),
        json!({"type": "remove", "path": ["a"]}),
        json!({"path": "a"}),
        json!(null),
    ] {
        assert!(serde_json::from_value::<Op>(op.clone()).is_err(), "{op}");
    }
}
