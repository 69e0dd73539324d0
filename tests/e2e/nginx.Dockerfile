# nginx as Debian has it, for engines that can't fetch the official image.
FROM python:3.12-slim
RUN apt-get update -qq && apt-get install -qq -y --no-install-recommends nginx-light
ENTRYPOINT ["nginx", "-g", "daemon off;"]
