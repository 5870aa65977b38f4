//! Applying operations to a value.

use serde_json::{Map, Number, Value};

use crate::op::{Op, UpdateError, UpdateErrorCode};

/// What became of a value.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    pub value: Value,
    /// Operations that were skipped, in order.
    pub errors: Vec<UpdateError>,
}

/// Applies operations to a value; `None` is a value that is missing, which counts as an empty object.
#[must_use]
pub fn apply(ops: Vec<Op>, current: Option<Value>) -> Outcome {
    let mut root = current;
    let mut errors = Vec::new();
    for (op_index, op) in ops.into_iter().enumerate() {
        let name = op.name();
        if let Err(reason) = op.check().and_then(|()| change(&mut root, op)) {
            errors.push(UpdateError { op_index, op: name, reason });
        }
    }
    Outcome { value: root.unwrap_or_else(empty), errors }
}

/// Changes nothing where it fails.
fn change(root: &mut Option<Value>, op: Op) -> Result<(), UpdateErrorCode> {
    match op {
        Op::Set { path, value } => set(root, path, value),
        Op::Increment { path, by } => add(root, path, by.into()),
        Op::Decrement { path, by } => add(root, path, -i128::from(by)),
        Op::Append { path, value } => append(root, path.map_or_else(Vec::new, Into::into), value),
        Op::Merge { path, value } => {
            merge(root, path.map_or_else(Vec::new, Into::into), value);
            Ok(())
        }
        Op::Remove { path } => remove(root, &path),
    }
}

fn set(root: &mut Option<Value>, key: String, value: Value) -> Result<(), UpdateErrorCode> {
    if key.is_empty() {
        *root = Some(value);
    } else {
        fields(root)?.insert(key, value);
    }
    Ok(())
}

fn remove(root: &mut Option<Value>, key: &str) -> Result<(), UpdateErrorCode> {
    if key.is_empty() {
        *root = Some(Value::Null);
    } else {
        // The other keys stay in their order.
        fields(root)?.shift_remove(key);
    }
    Ok(())
}

fn add(root: &mut Option<Value>, key: String, by: i128) -> Result<(), UpdateErrorCode> {
    if key.is_empty() {
        *root = Some(sum(root.as_ref(), by)?);
        return Ok(());
    }
    let fields = fields(root)?;
    let sum = sum(fields.get(&key), by)?;
    fields.insert(key, sum);
    Ok(())
}

/// Integers stay integers; what does not fit into one is refused rather than rounded.
fn sum(number: Option<&Value>, by: i128) -> Result<Value, UpdateErrorCode> {
    let integer = match number {
        None => Some(0),
        Some(value) => value.as_i64().map(i128::from).or_else(|| value.as_u64().map(i128::from)),
    };
    let sum = match (integer, number) {
        (Some(integer), _) => i64::try_from(integer + by).ok().map(Number::from),
        (None, Some(Value::Number(float))) => float.as_f64().and_then(|float| Number::from_f64(float + by as f64)),
        (None, _) => None,
    };
    sum.map(Value::Number).ok_or(UpdateErrorCode::NotNumber)
}

fn append(root: &mut Option<Value>, mut path: Vec<String>, value: Value) -> Result<(), UpdateErrorCode> {
    // A first string is kept as text that grows, but on a deeper level it is the first of a list.
    let first = |value: Value, levels: usize| match value {
        Value::String(_) if levels <= 1 => value,
        value => Value::Array(vec![value]),
    };
    let levels = path.len();
    let Some(last) = path.pop() else {
        match root {
            None | Some(Value::Null) => *root = Some(first(value, levels)),
            Some(present) => extend(present, value)?,
        }
        return Ok(());
    };
    let parent = walk(fields(root)?, path);
    match parent.get_mut(&last) {
        None | Some(Value::Null) => {
            parent.insert(last, first(value, levels));
        }
        Some(present) => extend(present, value)?,
    }
    Ok(())
}

fn extend(present: &mut Value, value: Value) -> Result<(), UpdateErrorCode> {
    match (present, value) {
        (Value::Array(items), value) => items.push(value),
        (Value::String(text), Value::String(more)) => text.push_str(&more),
        _ => return Err(UpdateErrorCode::TypeMismatch),
    }
    Ok(())
}

fn merge(root: &mut Option<Value>, path: Vec<String>, value: Value) {
    let Value::Object(new) = value else { return };
    walk(object(root.get_or_insert_with(empty)), path).extend(new);
}

/// The object at the end of a path. What stands in the way is replaced: then nothing is at the end, and whoever
/// writes there cannot fail any more.
fn walk(from: &mut Map<String, Value>, path: Vec<String>) -> &mut Map<String, Value> {
    path.into_iter().fold(from, |parent, segment| object(parent.entry(segment).or_insert_with(empty)))
}

/// The keys of the whole value.
fn fields(root: &mut Option<Value>) -> Result<&mut Map<String, Value>, UpdateErrorCode> {
    root.get_or_insert_with(empty).as_object_mut().ok_or(UpdateErrorCode::TargetNotObject)
}

fn object(value: &mut Value) -> &mut Map<String, Value> {
    if !value.is_object() {
        *value = empty();
    }
    value.as_object_mut().expect("made one above if it was none")
}

fn empty() -> Value {
    Value::Object(Map::new())
}
