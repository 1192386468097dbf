"""A small client: translates its arguments, or three sample comments. Run it with `make client`.

It needs grpcio, googleapis-common-protos and the generated stubs (translator/v1), nothing else of this project.
"""

import argparse
import sys

import grpc
from google.rpc import error_details_pb2, status_pb2

from translator.v1 import translation_pb2 as pb
from translator.v1 import translation_pb2_grpc as pb_grpc

SAMPLES = ["这家店的奶茶绝了😭", "@小美 周末一起去爬山吗？ https://example.com/route", "😂😂😂"]

# gRPC waits and tries again by itself when the server is loading, draining or full.
RETRY = """{"methodConfig": [{"name": [{"service": "translator.v1.TranslationService"}], "retryPolicy": {
  "maxAttempts": 4, "initialBackoff": "0.2s", "maxBackoff": "3s", "backoffMultiplier": 2,
  "retryableStatusCodes": ["UNAVAILABLE", "RESOURCE_EXHAUSTED"]}}]}"""


def main() -> int:
    """Exit status 1 when the call fails; its details say why."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("comments", nargs="*", help="comments to translate")
    parser.add_argument("--to", default="en", help="target language: en, zh or zh-Hant")
    parser.add_argument("--server", default="localhost:50051", help="host:port")
    arguments = parser.parse_args()

    with grpc.insecure_channel(arguments.server, options=[("grpc.service_config", RETRY)]) as channel:
        service = pb_grpc.TranslationServiceStub(channel)
        request = pb.TranslateTextRequest(contents=arguments.comments or SAMPLES, target_language_code=arguments.to)
        try:
            response = service.TranslateText(request, timeout=10)
        except grpc.RpcError as error:
            print(f"{error.code().name}: {error.details()}", file=sys.stderr)
            for key, value in error.trailing_metadata() or ():
                if key == "grpc-status-details-bin":
                    for detail in status_pb2.Status.FromString(value).details:
                        info = error_details_pb2.ErrorInfo()
                        if detail.Unpack(info):
                            print(f"reason: {info.reason}", file=sys.stderr)
            return 1
    for source, translation in zip(request.contents, response.translations, strict=True):
        if translation.skip_reason:
            note = pb.SkipReason.Name(translation.skip_reason).removeprefix("SKIP_REASON_").lower()
        elif translation.HasField("status"):
            note = translation.status.message
        else:
            note = "from the cache" if translation.cache_hit else translation.model
        print(f"{source}\n  -> {translation.translated_text}   [{translation.detected_language_code}; {note}]")
    return 0


if __name__ == "__main__":
    sys.exit(main())
