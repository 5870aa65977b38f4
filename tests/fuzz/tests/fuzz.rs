//! Every target, replayed and mutated for a bounded time.

#[test]
fn any_text_is_a_message_or_is_not() {
    fuzz::run("decode", fuzz::decode);
}

#[test]
fn any_bytes_are_frames_or_are_not() {
    fuzz::run("frames", fuzz::frames);
}

#[test]
fn whatever_workers_do_every_accepted_call_is_answered_once() {
    fuzz::run("router", fuzz::router);
}
