from prometheus_client.parser import text_string_to_metric_families

from lite_llama.server.metrics import Metrics, merge_pages


def test_the_pages_of_two_replicas_become_one() -> None:
    pages = {}
    for replica, num_tokens in (("a", 3), ("b", 5)):
        metrics = Metrics()
        metrics.first_token(0.2, num_tokens)
        metrics.finished("stop")
        pages[replica] = metrics.render().decode()
    text = merge_pages(pages).decode()
    assert text.count("# TYPE lite_llama:prompt_tokens_total counter") == 1
    samples = {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    name = "lite_llama:prompt_tokens_total"
    assert (samples[name, ("replica", "a")], samples[name, ("replica", "b")]) == (3, 5)
    reason = ("finished_reason", "stop")
    assert samples["lite_llama:request_success_total", reason, ("replica", "b")] == 1
    bucket = "lite_llama:time_to_first_token_seconds_bucket"
    assert samples[bucket, ("le", "0.25"), ("replica", "a")] == 1
    assert samples[bucket, ("le", "0.1"), ("replica", "a")] == 0


def test_no_page_is_an_empty_page() -> None:
    assert merge_pages({}) == b""
