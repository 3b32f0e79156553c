"""llama.cpp on the work that bench_run.py gives to ./run; a program of its own.

Reads {model, ids, n_tokens, n_ctx, threads} as JSON on standard input and prints {name,
prefill_tok_s, decode_tok_s}. Uses llama-cpp-python where `make bench-peers` built it for this
machine, else the wheel xllamacpp, whose timings are those of its server. Defaults throughout:
F16 keys and values, flash attention as llama.cpp chooses.
"""

import json
import sys
import time
import urllib.request


def native(job: dict) -> dict:
    import llama_cpp

    llama = llama_cpp.Llama(
        job["model"],
        n_ctx=job["n_ctx"],
        n_threads=job["threads"],
        n_threads_batch=job["threads"],
        verbose=False,
    )
    llama.eval([0])  # llama.cpp's own programs warm up too
    llama.reset()
    start = time.perf_counter()
    llama.eval(job["ids"])
    prefilled = time.perf_counter()
    for _ in range(job["n_tokens"]):
        llama.eval([llama.sample(temp=0.0)])
    done = time.perf_counter()
    return {
        "name": f"llama.cpp (llama-cpp-python {llama_cpp.__version__}, built here)",
        "prefill_tok_s": len(job["ids"]) / (prefilled - start),
        "decode_tok_s": job["n_tokens"] / (done - prefilled),
    }


def wheel(job: dict) -> dict:
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = job["model"]
    params.n_ctx, params.n_parallel, params.port, params.verbosity = job["n_ctx"], 1, 0, -1
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = job["threads"]
    server = xllamacpp.Server(params)
    body = {
        "prompt": job["ids"],
        "n_predict": job["n_tokens"],
        "temperature": 0,
        "ignore_eos": True,
        "cache_prompt": False,
    }
    request = urllib.request.Request(
        f"{server.listening_address}/completion",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request) as answer:
        timings = json.load(answer)["timings"]
    return {
        "name": f"llama.cpp (xllamacpp {xllamacpp.__version__}, a wheel)",
        "prefill_tok_s": timings["prompt_per_second"],
        "decode_tok_s": timings["predicted_per_second"],
    }


if __name__ == "__main__":
    job = json.load(sys.stdin)
    try:
        answer = native(job)
    except ImportError:
        answer = wheel(job)
    print(json.dumps(answer))
