"""The server that most people write: transformers behind grpcio, a thread pool, one call at a time under a lock.

It speaks this project's protocol, so that the same load generator can drive both. Greedy decoding with the same cap on
the length of the output, no cache, no batching across calls, no comment handling.

    python -m bench.baseline_server zh-en=models/embedded/zh-en en-zh=models/embedded/en-zh
"""

from __future__ import annotations

import argparse
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import torch
from transformers import MarianMTModel, MarianTokenizer

from translator.model import DecodingOptions
from translator.v1 import translation_pb2 as pb

CAP = DecodingOptions()


class Baseline:
    """The method TranslateText. The caller must name the source language."""

    def __init__(self, folders: dict[str, Path]) -> None:
        self._lock = threading.Lock()
        self._models = {
            pair: (
                MarianTokenizer.from_pretrained(str(folder)),
                MarianMTModel.from_pretrained(str(folder), dtype=torch.float32),
            )
            for pair, folder in folders.items()
        }

    def translate_text(self, request: pb.TranslateTextRequest, _: Any) -> pb.TranslateTextResponse:
        pair = f"{request.source_language_code[:2]}-{request.target_language_code[:2]}"
        tokenizer, model = self._models[pair]
        with self._lock:
            inputs = tokenizer(list(request.contents), return_tensors="pt", padding=True)
            limit = CAP.max_target_tokens(inputs.input_ids.shape[1], model.config.max_position_embeddings - 1)
            with torch.no_grad():
                outputs = model.generate(**inputs, num_beams=1, max_length=None, max_new_tokens=limit)
            texts = tokenizer.batch_decode(outputs, skip_special_tokens=True)
        return pb.TranslateTextResponse(translations=[pb.Translation(translated_text=text) for text in texts])


def main() -> None:
    """Serve on a free port and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="PAIR=FOLDER")
    arguments = parser.parse_args()
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    server = grpc.server(ThreadPoolExecutor(64))
    folders = {pair: Path(folder) for pair, _, folder in (entry.partition("=") for entry in arguments.models)}
    method = grpc.unary_unary_rpc_method_handler(
        Baseline(folders).translate_text,
        request_deserializer=pb.TranslateTextRequest.FromString,
        response_serializer=pb.TranslateTextResponse.SerializeToString,
    )
    service = pb.DESCRIPTOR.services_by_name["TranslationService"].full_name
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {"TranslateText": method}),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    print(f"serving on 127.0.0.1:{port}", flush=True)
    server.wait_for_termination()


if __name__ == "__main__":
    main()
