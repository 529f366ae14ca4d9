#!/bin/sh
# As run_docker.sh, and once more under the name ${name}_batched, with batching.
# usage: sh run_docker_batched.sh DIRECTORY [SERVER_ARGUMENT...]
# DIRECTORY gets a copy of version ${version}: published versions never change.
set -eu
if [ $$# -lt 1 ]; then
  echo "usage: sh run_docker_batched.sh DIRECTORY [SERVER_ARGUMENT...]" >&2
  exit 2
fi
here=$$(cd "$$(dirname "$$0")" && pwd)
export_dir=$$(cd "$$here/${to_export_dir}" && pwd)
mkdir -p "$$1"
batched=$$(cd "$$1" && pwd)
shift
if [ ! -e "$$batched/${version}" ]; then
  rm -rf "$$batched/copying"
  cp -r "$$export_dir/${artifact}" "$$batched/copying"
  cp "$$here/batching_parameters.txt" "$$batched/copying/batching_params.pbtxt"
  mv "$$batched/copying" "$$batched/${version}"
fi
exec docker run --rm -p 8500:8500 -p 8501:8501 \
  -v "$$export_dir:/models/${name}:ro" \
  -v "$$batched:/models/${name}_batched:ro" \
  -v "$$here:/config:ro" \
  "$${TF_SERVING_IMAGE:-tensorflow/serving:${tf_serving_version}}" \
  --model_config_file=/config/models_batched.config \
  --enable_batching \
  --batching_parameters_file=/config/batching_parameters.txt \
  --enable_per_model_batching_parameters "$$@"
