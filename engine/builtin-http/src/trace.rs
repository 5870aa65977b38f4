//! The trace that a request belongs to: its own, or one that begins here.

use engine_builtin::Trace;
use hyper::HeaderMap;

/// What a request says about its trace. Without a usable `traceparent` a new, sampled trace begins.
pub(crate) fn of(headers: &HeaderMap) -> Trace {
    let given = headers.get("traceparent").and_then(|value| value.to_str().ok());
    Trace {
        traceparent: Some(given.filter(|text| is_traceparent(text)).map_or_else(begin, str::to_owned)),
        baggage: baggage(headers),
    }
}

fn begin() -> String {
    // An id of zeros would be none.
    format!("00-{:032x}-{:016x}-01", fastrand::u128(1..), fastrand::u64(1..))
}

/// W3C Trace Context, section 3.2: `version-traceid-parentid-flags`; a later version may say more after another `-`.
fn is_traceparent(text: &str) -> bool {
    let mut parts = text.splitn(5, '-');
    let mut hex = |digits: usize| {
        parts
            .next()
            .filter(|part| part.len() == digits && part.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')))
    };
    let (Some(version), Some(trace), Some(parent), Some(_flags)) = (hex(2), hex(32), hex(16), hex(2)) else {
        return false;
    };
    let some = |id: &str| id.bytes().any(|byte| byte != b'0');
    let whole = version != "00" || parts.next().is_none();
    version != "ff" && some(trace) && some(parent) && whole
}

/// Several fields are one list.
fn baggage(headers: &HeaderMap) -> Option<String> {
    let mut values = headers.get_all("baggage").iter().filter_map(|value| value.to_str().ok());
    let first = values.next()?.to_owned();
    Some(values.fold(first, |list, more| list + "," + more))
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIVEN: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00";

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, value.parse().expect("a value"));
        }
        headers
    }

    #[test]
    fn a_trace_that_arrives_goes_on() {
        let trace = of(&headers(&[("traceparent", GIVEN), ("baggage", "a=1"), ("baggage", "b=2")]));
        assert_eq!(trace, Trace { traceparent: Some(GIVEN.into()), baggage: Some("a=1,b=2".into()) });
    }

    #[test]
    fn without_one_a_sampled_trace_begins_each_time_another() {
        let begun = |pairs: &[(&'static str, &str)]| of(&headers(pairs)).traceparent.expect("a trace");
        let zeros = GIVEN.replace("0af7651916cd43dd8448eb211c80319c", &"0".repeat(32));
        let more = format!("{GIVEN}-x");
        for bad in ["", "nonsense", &zeros, &more, &GIVEN.to_uppercase(), &GIVEN.replacen("00", "ff", 1)] {
            let trace = begun(&[("traceparent", bad)]);
            assert_ne!(trace, bad);
            assert!(is_traceparent(&trace) && trace.ends_with("-01"), "{trace}");
        }
        assert_ne!(begun(&[]), begun(&[]));
        assert!(is_traceparent(&format!("01-{}-later", &GIVEN[3..])));
    }
}
